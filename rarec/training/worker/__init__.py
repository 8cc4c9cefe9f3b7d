"""The processes of a training: the agent of a machine, its ranks, and the files by which they tell how they fare."""
