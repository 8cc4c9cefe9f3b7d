"""Where published files come from: folders, downloads, archives, or made here."""
