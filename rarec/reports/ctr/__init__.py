"""The report of the ReLLa track."""
