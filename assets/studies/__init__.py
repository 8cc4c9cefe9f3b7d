"""Settings tried against each other."""
