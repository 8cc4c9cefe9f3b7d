"""Training workers: launched, followed, and ended."""
