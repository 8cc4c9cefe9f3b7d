"""Group `baselines`: the simple methods that ReLLa has to beat."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from assets.data.clean import load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.rella.text import labels
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
    version="2",
    inputs=("interactions", "ctr_samples", "mixed_reit_samples"),
    kinds={"scikitlearn"},
    config=labels,
)
def ctr_baselines(job: Job[Settings]) -> Outcome:
    """Probabilities of the validation and test samples by simple methods: what ReLLa has to beat.

    Logistic regressions on five, nine and eleven numbers that are known before the event, and boosted trees on eleven.
    Each is fitted on the whole training split, and on the samples that tune the first adapter.
    """
    samples = CtrSamples.load(job.path("ctr_samples"))
    table = load_table(job.inputs["interactions"], "interactions", ("item_index", "rating"))
    rating = table["rating"].to_numpy()
    items = table["item_index"].to_numpy().astype(np.int64)
    first, shots = first_shots(job.path("mixed_reit_samples"))
    found = Probabilities(samples)
    chosen: dict[str, float] = {}
    for baseline in fitted(samples, items, rating, job.spec.is_positive(rating), shots, first.seed):
        found.add(baseline.name, baseline.probability[samples.rows("valid").start :])
        chosen |= baseline.chosen
    return found.outcome(job.folder, {f"{name}, chosen on validation": value for name, value in chosen.items()})


class Probabilities:
    """Probabilities of the validation and test samples by model, as they come in."""

    def __init__(self, samples: CtrSamples) -> None:
        self.samples = samples
        self.rows = {split: samples.rows(split) for split in SPLITS}
        self.columns = {split: {"sample": np.arange(own.start, own.stop)} for split, own in self.rows.items()}
        self.metrics: dict[str, float] = {}

    def add(self, name: str, probability: Float64Array) -> None:
        """Take in the probabilities of the validation samples and of the test samples behind them."""
        for split, part in zip(SPLITS, np.split(probability, [len(self.columns["valid"]["sample"])]), strict=True):
            self.columns[split][name] = part
            figures = figures_of(part, self.samples.label[self.rows[split]])
            where = f"{SPLIT_NAMES[split]}/{name}"
            self.metrics |= {f"{where}/{key}": float(value) for key, value in zip(METRICS, figures, strict=True)}

    def outcome(self, folder: Path, told: Mapping[str, float | str]) -> Outcome:
        """Write a table a split, for `baseline_probabilities`, and tell the figures and what else is ``told``."""
        for split, columns in self.columns.items():
            pd.DataFrame(columns).to_parquet(folder / f"{split}.parquet", index=False)
        names = [name for name in self.columns["test"] if name != "sample"]
        values = {f"test {name} AUC": round(self.metrics[f"test/{name}/AUC"], 4) for name in names}
        return Outcome({**values, **told}, metrics=self.metrics)


def first_shots(folder: Path) -> tuple[Variant, IntArray]:
    """The first adapter, and the training samples that tune it, ascending."""
    first = load_variants(folder)[0]
    return first, np.unique(TrainingSamples.load(folder / first.name).sample)


def baseline_probabilities(artifact: Artifact, split: Split, sample: IntArray) -> Mapping[str, Float64Array]:
    """Model to probabilities of these samples of the split."""
    table = pd.read_parquet(artifact.file(f"{split}.parquet")).set_index("sample").loc[sample]
    return {str(name): table[name].to_numpy() for name in table.columns}
