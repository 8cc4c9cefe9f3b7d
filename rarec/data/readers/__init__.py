"""Files as text in DuckDB, whatever they are written in, with every row's line. What they mean is not known here."""
