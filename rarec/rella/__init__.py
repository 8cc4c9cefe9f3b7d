"""The ReLLa track. Read in this order:

1. language_model: which model, and where it comes from; model_folder: fetching and checking one from elsewhere;
   small_llama and small_llama_training: one trained here.
2. vectors: semantic item vectors, by which `rarec.retrieval.subr` finds similar behaviours.
3. prompt_source: samples, their histories and their prompts, which `rarec.text` assembles.
4. training_samples and tuning: a LoRA adapter.
5. scoring (and decoder, its fast path on a CPU) and predict: probabilities of all samples.
6. online and merge: a tuned model for single questions, and as one folder.
"""
