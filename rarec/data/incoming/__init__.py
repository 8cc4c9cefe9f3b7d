"""Files that arrive after publication: parsed, merged, and the ledger of what came out."""
