"""Raw formats to three clean tables: interactions, items, users."""
