"""Item and memory retrieval: the collaborative memory bank and exact search."""
