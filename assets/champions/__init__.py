"""The models in use: candidates, champions, refreshes and drift."""
