"""Inputs of the CTR report, and their checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rarec.config import Settings
from rarec.errors import InputError
from rarec.reports.ctr.records import SplitSize
from rarec.reports.records import SHOWN_SPLITS
from rarec.types import BoolArray, Float64Array, Split


class CtrReportSettings(Settings):
    """Settings of the report."""

    resamples: int = Field(default=1000, ge=100, description="Draws of users behind each 95 % interval.")


@dataclass(frozen=True)
class CtrOutcome:
    """Predictions of one model for one split."""

    model: str
    split: Split
    probability: npt.ArrayLike
    """(N,) probability of a like for each sample, from 0 to 1."""


@dataclass(frozen=True)
class Samples:
    """The N > 0 samples of one split."""

    label: BoolArray
    user: npt.NDArray[Any]
    history_length: npt.NDArray[Any]
    target_count: npt.NDArray[Any]

    @classmethod
    def of(
        cls, split: Split, labels: Mapping[Split, npt.ArrayLike], *others: Mapping[Split, npt.ArrayLike]
    ) -> "Samples":
        """The samples of a split. `others` are users, history_length and target_count."""
        for name, values in zip(("labels", "users", "history_length", "target_count"), (labels, *others), strict=True):
            if split not in values:
                raise InputError(f"There are outcomes on {split}, but {name} has no values for {split}.")
        label, *arrays = (np.asarray(values[split]) for values in (labels, *others))
        if label.ndim != 1 or len(label) == 0:
            raise InputError(f"labels of {split} have the shape {label.shape}; give one label per sample.")
        for name, array in zip(("users", "history_length", "target_count"), arrays, strict=True):
            if array.shape != label.shape:
                raise InputError(f"{name} of {split} has the shape {array.shape}, but there are {len(label)} labels.")
        return cls(label.astype(bool), *arrays)

    def size(self, split: Split) -> SplitSize:
        """Numbers of samples and users, and the share of likes."""
        return SplitSize(
            split=split, n_samples=len(self.label), n_users=len(np.unique(self.user)), likes=float(self.label.mean())
        )


def splits_of(outcomes: Sequence[CtrOutcome]) -> list[Split]:
    """The splits that have outcomes, test first."""
    present = {outcome.split for outcome in outcomes}
    if not present:
        raise InputError("There are no outcomes to report.")
    return [split for split in SHOWN_SPLITS if split in present]


def checked_probabilities(
    outcomes: Sequence[CtrOutcome], samples: Mapping[Split, Samples]
) -> dict[tuple[str, Split], Float64Array]:
    """(N,) probabilities by model and split."""
    probabilities: dict[tuple[str, Split], Float64Array] = {}
    for outcome in outcomes:
        p, n = np.asarray(outcome.probability, dtype=np.float64), len(samples[outcome.split].label)
        where = f"{outcome.model} on {outcome.split}"
        if p.shape != (n,):
            raise InputError(f"{where} has probabilities of the shape {p.shape}, but there are {n} labels.")
        wrong = np.flatnonzero(~((p >= 0) & (p <= 1)))
        if len(wrong):
            raise InputError(
                f"{where} has {len(wrong)} probabilities outside 0 to 1; the first is {p[wrong[0]]}, of sample "
                f"{wrong[0]}."
            )
        if (outcome.model, outcome.split) in probabilities:
            raise InputError(f"There are two outcomes of {where}; give only one.")
        probabilities[outcome.model, outcome.split] = p
    return probabilities


def check_names(
    models: Sequence[str],
    yardstick: str | None,
    chosen: str | None,
    samples: Mapping[Split, Samples],
    probabilities: Mapping[tuple[str, Split], Float64Array],
) -> None:
    """Check that the yardstick has an outcome on every split, and the chosen model has one.

    Raises:
        InputError: That is not so.
    """
    for role, model in (("yardstick", yardstick), ("chosen model", chosen)):
        if model is not None and model not in models:
            raise InputError(f"The {role} {model} has no outcome; there are outcomes of {', '.join(models)}.")
    for split in samples:
        if yardstick is not None and (yardstick, split) not in probabilities:
            raise InputError(f"The yardstick {yardstick} has no outcome on {split}; every table must show it.")
