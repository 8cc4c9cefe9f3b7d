"""The RaSeRec track. Read in this order:

1. settings: what can be set, with the paper's values.
2. encoders (and packing, how they read batches): items in, one representation per prefix out.
3. losses and pretrain: stage 1 trains an encoder.
4. `rarec.retrieval.memory`: the bank of what users in similar states chose next.
5. retrieval_module and finetune: stage 2 trains attention over memories, on the frozen encoder.
6. recommender: all of it together, to rank items for users.
"""
