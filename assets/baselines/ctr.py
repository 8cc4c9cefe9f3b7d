"""Group `baselines`: the simple methods that ReLLa has to beat."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from assets.data.clean import load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from rarec.baselines.ctr import ctr_baselines as fitted
from rarec.config import Settings
from rarec.data.ctr import CtrSamples
from rarec.metrics.ctr import METRICS
from rarec.metrics.ctr import ctr_metrics as figures_of
from rarec.rella.training_samples import TrainingSamples, Variant, load_variants
from rarec.reports.records import SPLIT_NAMES
from rarec.types import Float64Array, IntArray, Split
from resources.artifacts.store import Artifact

SPLITS: tuple[Split, ...] = ("valid", "test")


@stage(
    group="baselines",
    track="rella",
    version="1",
    inputs=("interactions", "ctr_samples", "mixed_reit_samples"),
    kinds={"scikitlearn"},
    config=lambda request: {
        "label_threshold": request.spec.label_threshold,
        "label_comparison": request.spec.label_comparison,
    },
)
def ctr_baselines(job: Job[Settings]) -> Outcome:
    """Probabilities of the validation and test samples by simple methods: what ReLLa has to beat.

    Logistic regressions on five and nine numbers that are known before the event, and boosted trees on nine. Each is
    fitted on the whole training split, and on the samples that tune the first adapter.
    """
    samples = CtrSamples.load(job.path("ctr_samples"))
    table = load_table(job.inputs["interactions"], "interactions", ("item_index", "rating"))
    rating = table["rating"].to_numpy()
    items = table["item_index"].to_numpy().astype(np.int64)
    first, shots = first_shots(job.path("mixed_reit_samples"))
    rows = {split: samples.rows(split) for split in SPLITS}
    found = {split: {"sample": np.arange(own.start, own.stop)} for split, own in rows.items()}
    metrics: dict[str, float] = {}
    for baseline in fitted(samples, items, rating, job.spec.is_positive(rating), shots, first.seed):
        for split, own in rows.items():
            found[split][baseline.name] = baseline.probability[own]
            figures = figures_of(baseline.probability[own], samples.label[own])
            where = f"{SPLIT_NAMES[split]}/{baseline.name}"
            metrics |= {f"{where}/{name}": float(value) for name, value in zip(METRICS, figures, strict=True)}
    for split, columns in found.items():
        pd.DataFrame(columns).to_parquet(job.folder / f"{split}.parquet", index=False)
    values = {f"test {name} AUC": round(metrics[f"test/{name}/AUC"], 4) for name in found["test"] if name != "sample"}
    return Outcome(values, metrics=metrics)


def first_shots(folder: Path) -> tuple[Variant, IntArray]:
    """The first adapter, and the training samples that tune it, ascending."""
    first = load_variants(folder)[0]
    return first, np.unique(TrainingSamples.load(folder / first.name).sample)


def baseline_probabilities(artifact: Artifact, split: Split, sample: IntArray) -> Mapping[str, Float64Array]:
    """Model to probabilities of these samples of the split."""
    table = pd.read_parquet(artifact.file(f"{split}.parquet")).set_index("sample").loc[sample]
    return {str(name): table[name].to_numpy() for name in table.columns}
