"""The RaSeRec track."""
