"""What is materialised: one module a stage, each asset a short adapter around rarec."""
