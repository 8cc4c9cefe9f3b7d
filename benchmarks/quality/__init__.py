"""Figures of whole runs, kept as JSON, and the tables that are written from them."""
