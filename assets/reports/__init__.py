"""Figures of the trained models."""
