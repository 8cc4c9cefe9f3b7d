"""Metrics of rankings (ranking) and of probabilities (ctr), by group, with their significance."""
