"""Adapter tuning without dropout on however many ranks torchrun starts; run by test_rella_ranks.

Usage: rella_ranks_worker.py FOLDER. Rank 0 writes FOLDER/summary.json and the adapter.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from rella_toys import BASE, CPU, toy_data
from small_llama_toys import CATALOGUE, OFFSETS, small_llama_data

from rarec.rella.language_model import LanguageModelSettings
from rarec.rella.small_llama import train_small_llama
from rarec.rella.training_samples import draw_training_samples
from rarec.rella.tuning import TuningObjective, TuningSettings, add_adapter, tune
from rarec.training.engine import join_group, rank, world_size
from rarec.training.engine_settings import EngineSettings

# Twenty prompts: a step of nineteen, which the two ranks cut into unlike numbers of pieces, and a step of one.
SETTINGS = TuningSettings(dropout=0, batch_size=19, piece_tokens=200, epochs=3, patience=3, learning_rate=0.01)


def new_objective() -> TuningObjective:
    """The same objective on every rank."""
    data = toy_data()
    model = add_adapter(data.model(), SETTINGS, 5)
    shots = draw_training_samples(data.source.samples, 10, "mixed", 5)
    return TuningObjective(model, data.source, data.prompts, shots, data.answers, SETTINGS, 5, CPU)


def tune_on_ranks(folder: Path) -> None:
    """Tune and write what the test compares."""
    torch.set_num_threads(1)
    join_group(CPU)
    stages = range(4) if world_size() > 1 else [0]
    summaries = {}
    for stage in stages:
        output = folder / f"adapter-{stage}"
        output.mkdir(parents=True, exist_ok=True)
        engine = EngineSettings(zero_stage=stage, offload=stage == 3)
        summaries[stage] = tune(new_objective(), BASE, output, folder / f"checkpoint-{stage}", lambda **_: None, engine)
    # A step holds few documents: some leave a rank without any.
    settings = LanguageModelSettings(
        vocabulary=300, dim=16, layers=1, heads=2, epochs=3, batch_tokens=96, max_tokens=300, learning_rate=5e-3
    )
    parts, item, _, times, _ = small_llama_data()
    for stage in stages:
        output, checkpoint = folder / f"scratch-{stage}", folder / f"scratch-checkpoint-{stage}"
        output.mkdir(exist_ok=True)
        train_small_llama(
            parts, CATALOGUE, item, OFFSETS, np.arange(len(times)), ("Yes", "No"), settings, output, checkpoint,
            lambda **_: None, EngineSettings(zero_stage=stage, accumulation=1 + stage % 2),
        )  # fmt: skip
    if rank() == 0:
        (folder / "summary.json").write_text(json.dumps(summaries))


if __name__ == "__main__":
    tune_on_ranks(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as `worker_main` does: gloo's threads may abort an interpreter that shuts down under them
