"""Where published files come from: folders, downloads, archives, or a generator."""
