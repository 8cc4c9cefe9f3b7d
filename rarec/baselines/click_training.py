"""Training of SIM and of SASRec for clicks on the click samples, by the loop of every other stage."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rarec.baselines.click_models import CLICK_MODELS, ClickModel, Clicks, SasrecForClicks, Sim
from rarec.baselines.peer_predictions import PROBABILITY, ClickData, behaviours_at, sample_fields
from rarec.config import Settings, require_distinct
from rarec.data.ctr import CtrSamples
from rarec.data.sequences import user_at
from rarec.metrics.ctr import METRICS, ctr_metrics
from rarec.retrieval.subr import recent_behaviours
from rarec.training.device import on_device
from rarec.training.dropout import random_state, restore_random_state
from rarec.training.engine import keep_freed_memory, rank, shard, worker_device
from rarec.training.fit import FitSettings, fit
from rarec.training.job import Place, WorkerJob
from rarec.training.progress import ProgressReporter, worker_main
from rarec.types import Float64Array, Int32Array, IntArray

CLICKS = "clicks.npz"
_CHUNK = 8192


class _ClickSettings(Settings):
    dim: int = Field(default=16, ge=2, description="Width of the embeddings.")
    heads: int = Field(default=2, ge=1, description="Attention heads; must divide dim.")
    behaviours: int = Field(default=30, ge=1, description="Latest behaviours, and as many searched ones.")
    batch_size: int = Field(default=512, ge=1, description="Samples per step, over all processes.")
    epochs: int = Field(default=20, ge=1, description="Most epochs to train.")
    patience: int = Field(default=2, ge=1, description="Epochs without a better validation AUC after which it stops.")
    seed: int = Field(default=42, ge=0, description="Seed of weights, data order and dropout.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} is not a multiple of heads = {self.heads}")
        return self


class ClickSettings(_ClickSettings, FitSettings):
    """A training of SIM or of SASRec for clicks."""

    dropout: float = Field(default=0.2, ge=0, lt=1, description="Dropout.")

    def build(self, model: ClickModel, sizes: list[int], ratings: int) -> nn.Module:
        """A model with random weights from the seed."""
        torch.manual_seed(self.seed)
        if model == "sim":
            return Sim(sizes, ratings, self.dim, self.heads, self.dropout)
        return SasrecForClicks(sizes, ratings, self.dim, self.heads, self.dropout, self.behaviours)


class ClickSearchSettings(_ClickSettings):
    """SIM and SASRec for clicks, and the values between which validation AUC chooses."""

    models: tuple[ClickModel, ...] = Field(default=tuple(CLICK_MODELS), description="Models to train.")
    learning_rates: tuple[float, ...] = Field(default=(1e-3, 3e-3), description="Adam's learning rates to try.")
    dropouts: tuple[float, ...] = Field(default=(0.2, 0.5), description="Dropouts to try.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("models", "learning_rates", "dropouts"):
            require_distinct(name, getattr(self, name))
        return self

    def trials(self) -> list[ClickSettings]:
        """The trainings of a model."""
        shared = self.model_dump(exclude={"models", "learning_rates", "dropouts"})
        pairs = product(self.learning_rates, self.dropouts)
        return [ClickSettings(**shared, learning_rate=rate, dropout=dropout) for rate, dropout in pairs]


def same_category(samples: CtrSamples, category: IntArray, most: int) -> Int32Array:
    """(N, K) ages of the latest behaviours whose item has the target's category, oldest first; 0 for none.

    SIM's hard search (section 3.2.1).

    Args:
        category: (M,) of each interaction's item, -1 for none.
        most: K.
    """
    users = user_at(samples.offsets, np.arange(len(category)))
    order = np.lexsort((category, users))  # stable, so within a user and a category in order of time
    first = np.r_[True, (np.diff(users[order]) != 0) | (np.diff(category[order]) != 0)]
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    target = place[samples.position]
    back = target[:, None] - np.arange(most, 0, -1)
    there = (back >= start[target][:, None]) & (category[samples.position] >= 0)[:, None]
    return np.where(there, samples.position[:, None] - order[np.maximum(back, 0)], 0).astype(np.int32)


def categories(catalogue: pd.DataFrame) -> IntArray:
    """(I,) category of each item: its first genre, or else its category or author; -1 for none."""
    named = next((name for name in ("genres", "category", "author") if catalogue[name].notna().any()), None)
    if named is None:
        return np.full(len(catalogue), -1)
    return pd.factorize(catalogue[named].str.split("|").str[0])[0]


def save_clicks(data: ClickData, behaviours: int, file: Path) -> None:
    """Write the samples as `Clicks`, with labels, bounds of the splits and the adapters' shots."""
    samples = data.samples
    fields, sizes = sample_fields(data)
    arrays: dict[str, Any] = {"fields": np.column_stack(list(fields.values())).astype(np.int32)}
    for name, prefix, ages in (
        ("history", "", recent_behaviours(samples.offsets, samples.position, behaviours)),
        ("searched", "searched_", same_category(samples, categories(data.catalogue)[data.items], behaviours)),
    ):
        arrays[name], arrays[f"{prefix}rating"] = behaviours_at(data, ages)
        arrays[f"{prefix}age"] = ages.astype(np.int32)
    np.savez(
        file, sizes=np.array(sizes), ratings=data.rating_codes.max() + 1, label=samples.label,
        bounds=samples.bounds, shots=data.shots, **arrays,
    )  # fmt: skip


class ClickLoss(nn.Module):
    """The model, and the cross-entropy of its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: tuple[Clicks, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of B samples and their labels (B,)."""
        clicks, label = batch
        return F.binary_cross_entropy_with_logits(self.model(clicks), label, reduction="sum"), {}


class ClickObjective:
    """Data order, batches and validation of a click model."""

    choice = "AUC"

    def __init__(
        self,
        model: nn.Module,
        clicks: Clicks,
        label: npt.NDArray[np.bool_],
        train: IntArray,
        valid: IntArray,
        settings: ClickSettings,
        device: torch.device,
        accumulation: int = 1,
    ):
        self.model = ClickLoss(model.to(device))
        self.clicks, self.label = clicks, label
        self.train, self.valid = train, valid
        self.settings, self.device, self.accumulation = settings, device, accumulation
        self._steps: list[IntArray] = []

    def start_epoch(self, epoch: int) -> int:
        """Shuffle the samples into steps."""
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.train)
        self._steps = np.split(order, range(self.settings.batch_size, len(order), self.settings.batch_size))
        torch.manual_seed(hash((self.settings.seed, epoch, rank())) % 2**31)
        return len(self._steps)

    def batches(self, first: int = 0) -> Iterator[tuple[Sequence[tuple[Clicks, Tensor]], int]]:
        """This rank's part of every step."""
        for step in self._steps[first:]:
            parts = np.array_split(shard(step), self.accumulation)
            yield [(self._of(part), self._labels(part)) for part in parts], len(step)

    def _of(self, rows: IntArray) -> Clicks:
        chosen = self.clicks[torch.from_numpy(rows)]
        return Clicks(*(on_device(getattr(chosen, name).long(), self.device) for name in vars(chosen)))

    def _labels(self, rows: IntArray) -> Tensor:
        return on_device(torch.from_numpy(self.label[rows]).float(), self.device)

    def random_state(self) -> dict[str, Tensor]:
        """PyTorch's own generators, from which dropout draws."""
        return random_state(self.device)

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        restore_random_state(state, self.device)

    @torch.no_grad()
    def predict(self, rows: IntArray) -> Float64Array:
        """(n,) probabilities of these samples."""
        was_training = self.model.training
        self.model.eval()
        parts = [self.model.model(self._of(rows[i : i + _CHUNK])).sigmoid() for i in range(0, len(rows), _CHUNK)]
        self.model.train(was_training)
        return torch.cat(parts).double().cpu().numpy()

    def validate(self) -> dict[str, float]:
        """`METRICS` of the validation samples."""
        figures = ctr_metrics(self.predict(self.valid), self.label[self.valid])
        return dict(zip(METRICS, figures.tolist(), strict=True))


class ClickJob(WorkerJob):
    """Train a click model, and write the probabilities of the validation and test samples."""

    settings: ClickSettings
    model: ClickModel
    rows: str
    clicks: Path


def work(job: ClickJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry."""
    keep_freed_memory()
    with np.load(job.clicks) as given:
        clicks = Clicks(*(torch.from_numpy(given[name]) for name in Clicks.__dataclass_fields__))
        sizes, label, bounds, shots = (given[name] for name in ("sizes", "label", "bounds", "shots"))
        ratings = int(given["ratings"])
    train, valid, _ = (np.arange(bounds[split], bounds[split + 1]) for split in range(3))
    objective = ClickObjective(
        job.settings.build(job.model, sizes.tolist(), ratings),
        clicks,
        label,
        train if job.rows == "all" else shots,
        valid,
        job.settings,
        worker_device(),
        place.engine.accumulation,
    )
    fit(
        objective, job.settings, stage=CLICK_MODELS[job.model], output=place.output, checkpoint=place.checkpoint,
        report=reporter.report, engine=place.engine,
    )  # fmt: skip
    if rank() == 0:
        np.save(place.output / PROBABILITY, objective.predict(np.arange(bounds[1], bounds[3])))


if __name__ == "__main__":
    worker_main(ClickJob, work)
