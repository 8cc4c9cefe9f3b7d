"""What the drills run on."""

TINY = """
name = "tiny"
title = "Tiny synthetic data set"
domain = "movies"
rating_scale = [1, 5]
label_threshold = 3

[[sources]]
format = "synthetic"

[sources.demo]
users = 60
items = 100
interactions_per_user = 25

[overrides.raserec_pretrained]
dim = 8
inner_dim = 8
layers = 1
heads = 1
max_length = 8
epochs = 1

[overrides.raserec_finetuned]
memories = 5
heads = 1
inner_dim = 8
epochs = 1

[overrides.textual_samples]
behaviours = 8

[overrides.base_language_model]
vocabulary = 400
dim = 16
layers = 1
heads = 2
behaviours = 8
epochs = 1
batch_tokens = 1024
max_tokens = 512

[overrides.mixed_reit_samples]
shots = 64

[overrides.lora_checkpoint]
rank = 2
epochs = 1
batch_size = 32
validation_prompts = 50
"""
