"""The ReLLa track: language models, semantic item vectors, adapter tuning, yes/no scoring."""
