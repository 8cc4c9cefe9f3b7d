"""What published files mean: their formats, dialects, values and ids. Read in this order: published, forms, table."""
