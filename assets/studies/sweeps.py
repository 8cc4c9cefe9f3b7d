"""Group `sweeps`: settings of both tracks compared on validation figures."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from assets.raserec.encoder import FIGURES as RANKING_FIGURES
from assets.raserec.finetuned import finetune_job
from assets.rella.language import FIGURES, PROMPTS, answers, prompt_fields
from assets.studies.cells import Board, Cell, cells_of, run_cells, trials_identity
from rarec.data.ctr import CtrSamples
from rarec.raserec.finetune import FinetuneJob
from rarec.raserec.settings import FinetuneSettings
from rarec.rella.prompt_source import load_items, save_histories
from rarec.rella.training_samples import Mode, draw_training_samples
from rarec.rella.tuning import TuningJob, TuningSettings
from rarec.rella.vectors import VECTORS
from rarec.studies.sweeps import RaserecSweepSettings, RellaSweepSettings

VERSION = "1"
MODE: Mode = "mixed"
RANKING_BOARD = Board(RANKING_FIGURES, "NDCG@10", "raserec_finetuned", {})
BOARD = Board(FIGURES, "AUC", "lora_checkpoint", {"shots": "mixed_reit_samples", "behaviours": "textual_samples"})


def _raserec_cells(request: Request[RaserecSweepSettings]) -> tuple[Cell[FinetuneSettings], ...]:
    return cells_of(FinetuneSettings, request.settings, request.spec, "raserec_finetuned")


@stage(
    group="sweeps",
    track="raserec",
    version=VERSION,
    settings=RaserecSweepSettings,
    shown=("memories", "alpha", "beta"),
    inputs=("user_sequences", "raserec_pretrained", "memory_bank"),
    fingerprints={"encoder": "raserec_pretrained"},
    kinds={"pytorch", "deepspeed"},
    trains=True,
    prepare=_raserec_cells,
    config=lambda request: trials_identity(request.prepared),
)
def raserec_sweep(job: Job[RaserecSweepSettings]) -> Outcome:
    """Stage 2 with every combination of K, alpha and beta, ranked by validation NDCG@10."""
    encoder, sequences, bank = job.inputs["raserec_pretrained"], job.path("user_sequences"), job.path("memory_bank")

    def trains(cell: Cell[FinetuneSettings]) -> FinetuneJob:
        return finetune_job(cell.settings, sequences, encoder, bank)

    return run_cells(job, job.prepared, trains, RANKING_BOARD)


@dataclass(frozen=True)
class _Tunings:
    samples: CtrSamples
    cells: tuple[Cell[TuningSettings], ...]


def _tunings(request: Request[RellaSweepSettings]) -> _Tunings:
    samples, grid = CtrSamples.load(request.path("ctr_samples")), request.settings
    available = samples.rows("train").stop  # more samples than these would be the same training again
    few = tuple(dict.fromkeys(min(shots, available) for shots in grid.shots))
    grid = grid.model_copy(update={"shots": few})
    cells = cells_of(TuningSettings, grid, request.spec, "lora_checkpoint", without=BOARD.stage_of)
    source = request.inputs["base_language_model"].manifest.config["source"]
    return _Tunings(samples, tuple(replace(cell, settings=cell.settings.for_model(source)) for cell in cells))


def _tuning_config(request: Request[RellaSweepSettings]) -> dict[str, Any]:
    trials = trials_identity(request.prepared.cells)
    return {**trials, "seed": request.settings.seed, **answers(request)}


@stage(
    group="sweeps",
    track="rella",
    version=VERSION,
    settings=RellaSweepSettings,
    shown=("shots", "learning_rate", "behaviours"),
    inputs=(*PROMPTS, "semantic_item_vectors", "item_catalog", "user_profiles"),
    fingerprints={"base": "base_language_model"},
    kinds={"pytorch", "huggingface", "deepspeed"},
    trains=True,
    prepare=_tunings,
    config=_tuning_config,
)
def rella_sweep(job: Job[RellaSweepSettings]) -> Outcome:
    """Adapters tuned on mixed samples with every number of samples, learning rate and K, ranked by validation AUC."""
    grid, samples = job.settings, job.prepared.samples
    with tempfile.TemporaryDirectory(dir=job.workdir) as scratch:
        place = Path(scratch)
        if grid.behaviours:
            vectors = np.load(job.path("semantic_item_vectors") / VECTORS)
            items = load_items(job.path("interactions"))
            for k in grid.behaviours:  # cells share them
                histories = place / f"histories-{k}"
                histories.mkdir()
                save_histories(histories, samples, items, vectors, k)

        def trains(cell: Cell[TuningSettings]) -> TuningJob:
            drawn = place / cell.name
            draw_training_samples(samples, cell.values["shots"], MODE, grid.seed).save(drawn)
            k = cell.values.get("behaviours")
            return TuningJob(
                settings=cell.settings,
                seed=grid.seed,
                training_samples=drawn,
                histories=None if k is None else place / f"histories-{k}",
                **prompt_fields(job),
            )

        return run_cells(job, job.prepared.cells, trains, BOARD)
