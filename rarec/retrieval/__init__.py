"""Item and memory retrieval: the collaborative memory bank and semantic behaviour retrieval."""
