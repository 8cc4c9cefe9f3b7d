"""Words for items, users and histories: descriptions, prompt templates, token tables."""
