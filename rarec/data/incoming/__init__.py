"""Interactions that arrive after a data set was published. Read in this order: rows, parse, ledger, merge."""
