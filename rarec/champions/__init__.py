"""The model in use: when a candidate takes its place, when it drifts, and how it answers."""
