"""The ReLLa track."""
