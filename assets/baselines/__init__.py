"""Simple methods that the models have to beat."""
