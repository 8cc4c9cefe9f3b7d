"""What the drills run on: one epoch of everything."""

from declarations import SYNTHETIC, declared

TINY = declared(
    SYNTHETIC,
    raserec_pretrained={"epochs": 1},
    raserec_finetuned={"epochs": 1},
    base_language_model={"epochs": 1},
    mixed_reit_samples={"modes": ["mixed"]},
    lora_checkpoint={"epochs": 1, "validation_prompts": 50},
).format(name="tiny")
