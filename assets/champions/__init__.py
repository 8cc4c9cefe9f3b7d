"""Group `operations`: the models in use. Read `track` first: what a track declares."""
