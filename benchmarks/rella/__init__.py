"""Benchmarks of the ReLLa track."""
