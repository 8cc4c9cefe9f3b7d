"""The report of the RaSeRec track."""
