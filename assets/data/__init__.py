"""From files to clean tables and sequences."""
