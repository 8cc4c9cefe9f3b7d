"""Samples of the click-through task: will this user like this item, given everything they did before?

A sample is the position of its target in the sorted interactions. Its history is everything that the same user did
before. Only positions are stored: MovieLens-25M has 24 million samples with 590 behaviours on average.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rarec.config import Settings
from rarec.data.sequences import as_times, draw_rows, user_at
from rarec.data.source_spec import Time
from rarec.errors import InputError
from rarec.types import SPLITS, BoolArray, IntArray, Split


class CtrSettings(Settings):
    """Which interactions become samples, and how they are split (ReLLa, section 4.1.1)."""

    minimum_history: int = Field(default=5, ge=1, description="Behaviours that a target must have before it.")
    train_share: float = Field(default=0.8, gt=0, lt=1, description="Share of samples for training, the earliest.")
    valid_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of samples for validation, the next; the rest is the test split."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the split if the data have no clock.")

    @model_validator(mode="after")
    def _consistent(self) -> "CtrSettings":
        if self.train_share + self.valid_share >= 1:
            raise ValueError(
                f"train_share + valid_share = {self.train_share + self.valid_share:g} leaves no test split"
            )
        return self


@dataclass(frozen=True)
class CtrSamples:
    """N samples over interactions sorted by (user, time), in the order in which the splits follow each other.

    Attributes:
        offsets: (U + 1,) int64; user ``u`` owns interactions ``offsets[u]`` to ``offsets[u + 1] - 1``.
        position: (N,) int64 interaction of each target; its history is ``offsets[user] : position``.
        label: (N,) bool, whether the user liked the target.
        bounds: (4,) int64; split ``s`` of `SPLITS` is samples ``bounds[s]`` to ``bounds[s + 1] - 1``.
    """

    offsets: IntArray
    position: IntArray
    label: BoolArray
    bounds: IntArray

    def __len__(self) -> int:
        return len(self.position)

    def rows(self, split: Split) -> slice:
        """The samples of a split."""
        number = SPLITS.index(split)
        return slice(int(self.bounds[number]), int(self.bounds[number + 1]))

    @property
    def user(self) -> IntArray:
        """(N,) the user of every sample."""
        return user_at(self.offsets, self.position)

    @property
    def history_start(self) -> IntArray:
        """(N,) position of the first behaviour of every sample's user."""
        return self.offsets[self.user]

    def save(self, folder: Path) -> None:
        """Write the arrays as .npy files into ``folder``."""
        for name in ("offsets", "position", "label", "bounds"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "CtrSamples":
        """Read what `save` wrote."""
        return cls(*(np.load(folder / f"{name}.npy") for name in ("offsets", "position", "label", "bounds")))


def build_ctr_samples(
    user_index: npt.ArrayLike,
    timestamp: npt.ArrayLike,
    liked: npt.ArrayLike,
    n_users: int,
    time: Time,
    settings: CtrSettings,
) -> CtrSamples:
    """Make samples from interactions sorted by (user, time).

    If the data have a clock, every interaction with enough history is a sample, and the splits follow each other in
    global time, ties ordered by user and position. Otherwise there is no order between users: each user's last
    interaction is their only sample, and users are split at random.

    Args:
        user_index: (M,) user of each interaction, ascending.
        timestamp: (M,) int64 or float64.
        liked: (M,) bool.
        time: What ``timestamp`` means.

    Raises:
        InputError: There are no samples, or a split is empty or has only one class.
    """
    users = np.asarray(user_index, dtype=np.int64)
    times, likes = as_times(timestamp), np.asarray(liked, dtype=bool)
    counts = np.bincount(users, minlength=n_users)
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    if time == "clock":
        place = np.arange(len(users)) - offsets[users]
        position = np.flatnonzero(place >= settings.minimum_history)
        position = position[np.argsort(times[position], kind="stable")]  # ties stay in order of (user, position)
    else:
        position = offsets[1:][counts > settings.minimum_history] - 1
        position = np.random.default_rng(settings.seed).permutation(position)
    n = len(position)
    train, valid = int(settings.train_share * n), int(settings.valid_share * n)
    samples = CtrSamples(offsets, position, likes[position], np.array([0, train, train + valid, n], dtype=np.int64))
    _require_both_classes(samples, settings)
    return samples


def _require_both_classes(samples: CtrSamples, settings: CtrSettings) -> None:
    for split in SPLITS:
        labels = samples.label[samples.rows(split)]
        if len(labels) == 0:
            raise InputError(
                f"the {split} split is empty: only {len(samples)} interactions have {settings.minimum_history} or more "
                "by the same user before them; lower minimum_history, or use more data"
            )
        if labels.all() or not labels.any():
            only = "liked" if labels.all() else "disliked"
            raise InputError(
                f"all {len(labels)} targets of the {split} split are {only}, so there is nothing to learn or measure; "
                "change the data set's label_threshold, or the shares of the splits"
            )


def ctr_leaks(samples: CtrSamples, timestamp: npt.ArrayLike, time: Time) -> dict[str, int]:
    """Count targets in two splits and, if there is a clock, targets earlier than the end of the split before theirs.

    Args:
        timestamp: (M,) time of each interaction.
    """
    leaks = {"repeated": len(samples) - len(np.unique(samples.position)), "out_of_order": 0}
    if time == "clock":
        times = np.asarray(timestamp)[samples.position]
        leaks["out_of_order"] = sum(
            int((times[samples.rows(later)] < times[samples.rows(earlier)].max()).sum())
            for earlier, later in pairwise(SPLITS)
        )
    return leaks


def draw(samples: CtrSamples, split: Split, most: int, seed: int) -> IntArray:
    """Ascending samples of a split: all, or ``most`` drawn at random. See `draw_rows`."""
    rows = samples.rows(split)
    return draw_rows(np.arange(rows.start, rows.stop), most, seed)
