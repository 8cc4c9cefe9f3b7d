"""Folders of language models from elsewhere: fetching them, reading their weights, and checking them once."""
