"""Declarations of tiny data sets, as a user would write them, with models that train in a moment."""

import json
from typing import Any

SYNTHETIC = """
name = "{name}"
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
"""
OWN_FILES = """
name = "{name}"
title = "Own files"
domain = "products"

[[sources]]
format = "recbole"
"""
LENIENT = OWN_FILES.replace("\n\n", '\nduplicates = "keep-last"\nquarantine_limit = 0.5\n\n')
RASEREC = {
    "raserec_pretrained": {
        "dim": 8, "inner_dim": 8, "layers": 1, "heads": 1, "max_length": 8, "batch_size": 64, "epochs": 2,
    },
    "raserec_finetuned": {"memories": 5, "alpha": 0.6, "heads": 1, "inner_dim": 8, "epochs": 2},
    "raserec_controls": {"controls": ["random"]},
}  # fmt: skip
RELLA = {
    "textual_samples": {"behaviours": 8},
    "base_language_model": {
        "vocabulary": 400, "dim": 16, "layers": 1, "heads": 2, "behaviours": 8, "epochs": 2, "batch_tokens": 1024,
        "max_tokens": 512,
    },
    "mixed_reit_samples": {"shots": 64, "modes": ["mixed", "recent"]},
    "lora_checkpoint": {"rank": 2, "epochs": 2, "batch_size": 32, "validation_prompts": 100},
    "ctr_metrics": {"resamples": 100},
}  # fmt: skip
RELLA_MODELS = [
    "untuned, recent", "untuned, retrieved",
    "tuned on mixed, recent (seed 42)", "tuned on mixed, retrieved (seed 42)",
    "tuned on recent, recent (seed 42)", "tuned on recent, retrieved (seed 42)",
]  # fmt: skip
"""What predicts, with the stages of `RELLA`: untuned, and both adapters."""
CHOSEN_MODEL = "tuned on mixed, retrieved (seed 42)"
SIZES = RASEREC | RELLA


def declared(head: str, sizes: dict[str, dict[str, Any]] = SIZES, **changed: dict[str, Any]) -> str:
    """``head`` with these defaults of stages, and some of them changed: stage -> settings."""
    stages = {stage: {**sizes.get(stage, {}), **changed.get(stage, {})} for stage in (*sizes, *changed)}
    return head + "".join(
        f"\n[overrides.{stage}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        for stage, settings in stages.items()
    )


TINY = declared(SYNTHETIC)
MISCOUNTED = TINY + "\n[expected]\nusers = 61\nitems = 100\n"
