"""Retrieval-enhanced instruction tuning (ReLLa, section 3.3): which samples tune the adapters, with which histories."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from rarec.config import Settings, require_distinct
from rarec.data.ctr import CtrSamples, draw
from rarec.types import BoolArray, IntArray

Mode = Literal["recent", "retrieved", "mixed"]
History = Literal["recent", "retrieved"]
HISTORIES: tuple[History, ...] = ("recent", "retrieved")
_VARIANTS = "variants.json"


@dataclass(frozen=True)
class Variant:
    """An adapter: how its training prompts were made, and its seed."""

    mode: Mode
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.mode}-{self.seed}"

    @classmethod
    def named(cls, name: str) -> "Variant":
        """The variant with this `name`."""
        mode, _, seed = name.partition("-")
        return cls(cast(Mode, mode), int(seed))

    def label(self, history: History) -> str:
        """Name of its predictions."""
        return f"tuned on {self.mode}, {history} (seed {self.seed})"

    def histories(self) -> tuple[History, ...]:
        """Histories to evaluate it on: retrieved ones, as in the paper, and recent ones if it was tuned on these."""
        return ("retrieved",) if self.mode == "retrieved" else HISTORIES


class TrainingSampleSettings(Settings):
    """Which samples tune the adapters, and with which histories."""

    shots: int = Field(default=8192, ge=1, description="Samples drawn from the training split; all if there are fewer.")
    modes: tuple[Mode, ...] = Field(
        default=("mixed",),
        description="Histories of the training prompts: recent, retrieved, or mixed (each sample with both). One "
        "adapter is tuned for each mode and seed. The first one is the model, the others are for comparison.",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(42,), description="Seeds of the draw and of the tuning."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSampleSettings":
        for name in ("modes", "seeds"):
            require_distinct(name, getattr(self, name))
        return self

    def variants(self) -> list[Variant]:
        """All pairs of mode and seed, those of the first seed first."""
        return [Variant(mode, seed) for seed in self.seeds for mode in self.modes]


def save_variants(variants: Sequence[Variant], folder: Path) -> None:
    """Write the variants in order; the first one is the model."""
    (folder / _VARIANTS).write_text(json.dumps([variant.name for variant in variants]))


def load_variants(folder: Path) -> list[Variant]:
    """Read what `save_variants` wrote."""
    return [Variant.named(name) for name in json.loads((folder / _VARIANTS).read_text())]


@dataclass(frozen=True)
class TrainingSamples:
    """The prompts that tune an adapter.

    Attributes:
        sample: (P,) sample of each prompt.
        retrieved: (P,) whether its history is the retrieved one, not the recent one.
    """

    sample: IntArray
    retrieved: BoolArray

    def __len__(self) -> int:
        return len(self.sample)

    def save(self, folder: Path) -> None:
        """Write the arrays as .npy files into ``folder``, which is created."""
        folder.mkdir(parents=True)
        np.save(folder / "sample.npy", self.sample)
        np.save(folder / "retrieved.npy", self.retrieved)

    @classmethod
    def load(cls, folder: Path) -> "TrainingSamples":
        """Read what `save` wrote."""
        return cls(np.load(folder / "sample.npy"), np.load(folder / "retrieved.npy"))


def draw_training_samples(samples: CtrSamples, count: int, mode: Mode, seed: int) -> TrainingSamples:
    """Draw ``count`` samples of the training split, or all if there are fewer.

    With the same seed, a smaller draw is part of a larger one. ``mixed`` gives each sample twice, once with each
    history, so there are twice as many prompts.
    """
    chosen = draw(samples, "train", count, seed)
    if mode == "mixed":
        return TrainingSamples(np.concatenate([chosen, chosen]), np.arange(2 * len(chosen)) >= len(chosen))
    return TrainingSamples(chosen, np.full(len(chosen), mode == "retrieved"))
