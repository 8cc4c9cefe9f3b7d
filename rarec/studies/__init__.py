"""Experiments: grids of settings, and how their trials are ranked."""
