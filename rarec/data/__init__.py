"""Raw formats to three clean tables (interactions, items, users), and these to sequences and samples."""
