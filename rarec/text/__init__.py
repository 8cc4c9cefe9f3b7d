"""Prompts: first as sequences of shared parts (prompts), then as tokens. How they are worded is part of a data set."""
