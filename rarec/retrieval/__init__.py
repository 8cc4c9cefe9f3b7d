"""Retrieval: the item index, semantic behaviour retrieval (SUBR), and the collaborative memory bank.

Read in this order: settings, index (with exact), items, subr, memory. Vectors are made elsewhere.
"""
