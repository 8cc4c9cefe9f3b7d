"""Ranking metrics, user and item groups, significance, and the report made of them."""
