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

Mode = Literal["recent", "retrieved", "mixed", "random", "mixed-random", "mixed-half"]
History = Literal["recent", "retrieved", "random"]
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
        mode, _, seed = name.rpartition("-")
        return cls(cast(Mode, mode), int(seed))

    def label(self, history: History) -> str:
        """Name of its predictions."""
        return f"tuned on {self.mode}, {history} (seed {self.seed})"

    @property
    def random(self) -> bool:
        """Whether random behaviours take the place of the retrieved ones: a control."""
        return self.mode in ("random", "mixed-random")

    @property
    def other(self) -> History:
        """The history that is not the recent one."""
        return "random" if self.random else "retrieved"

    def histories(self) -> tuple[History, ...]:
        """Histories to evaluate it on: retrieved ones, as in the paper, and recent ones if it was tuned on these."""
        return (self.other,) if self.mode in ("retrieved", "random") else ("recent", self.other)


class TrainingSampleSettings(Settings):
    """Which samples tune the adapters, and with which histories."""

    shots: int = Field(default=8192, ge=1, description="Samples drawn from the training split; all if there are fewer.")
    modes: tuple[Mode, ...] = Field(
        default=("mixed",),
        description="Histories of the training prompts: recent, retrieved, or mixed (each sample with both). One "
        "adapter is tuned for each mode and seed. The first one is the model, the others are for comparison; so are "
        "the controls: mixed-half (half of the shots, so as many prompts as recent), and random and mixed-random (K "
        "behaviours drawn at random in the place of the retrieved ones).",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(42,), description="Seeds of the draw and of the tuning."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSampleSettings":
        for name in ("modes", "seeds"):
            require_distinct(name, getattr(self, name))
        if self.modes and self.modes[0] in ("random", "mixed-random"):
            raise ValueError(f"modes begins with {self.modes[0]}, a control; put the mode of the model first")
        return self

    def variants(self) -> list[Variant]:
        """All pairs of mode and seed, those of the first seed first."""
        return [Variant(mode, seed) for seed in self.seeds for mode in self.modes]


def asked(variants: Sequence[Variant]) -> list[tuple[Variant, History]]:
    """What is evaluated: every adapter with its histories, and beside a random control the mixed ones with random too.

    The latter shows what similarity is worth in prompts alone.
    """
    also = any(variant.random for variant in variants)
    return [
        (variant, history)
        for variant in variants
        for history in (*variant.histories(), *(("random",) if also and variant.mode == "mixed" else ()))
    ]


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


def shots(count: int, mode: Mode) -> int:
    """How many of ``count`` samples a mode takes: ``mixed-half`` half of them, and so as many prompts as ``recent``."""
    return max(1, count // 2) if mode == "mixed-half" else count


def draw_training_samples(samples: CtrSamples, count: int, mode: Mode, seed: int) -> TrainingSamples:
    """Draw ``count`` samples of the training split, or all if there are fewer.

    With the same seed, a smaller draw is part of a larger one. ``mixed`` gives each sample twice, once with each
    history, so there are twice as many prompts; ``mixed-half`` draws half as many samples. In the random modes the
    prompts marked as retrieved get random histories when they are made.
    """
    chosen = draw(samples, "train", shots(min(count, samples.rows("train").stop), mode), seed)
    if mode.startswith("mixed"):
        return TrainingSamples(np.concatenate([chosen, chosen]), np.arange(2 * len(chosen)) >= len(chosen))
    return TrainingSamples(chosen, np.full(len(chosen), mode != "recent"))
