"""Pages, plots, tables and records of figures."""
