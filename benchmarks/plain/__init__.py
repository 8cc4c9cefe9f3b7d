"""Plain implementations of both papers' methods, which ours are timed against and must agree with."""
