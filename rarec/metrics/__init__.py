"""Figures of rankings and probabilities, by group, with their significance."""
