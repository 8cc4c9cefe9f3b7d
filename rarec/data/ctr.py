"""Samples of the click-through task: will this user like this item, given all they did before?

A sample is named by the position of its target in the sorted interactions; its history is everything of the same user
before it. Positions are all that is stored: MovieLens-25M has 24 million samples with 590 behaviours on average.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rarec.config import Settings
from rarec.data.sequences import draw_rows, user_at
from rarec.data.spec import Time
from rarec.errors import InputError
from rarec.types import SPLITS, BoolArray, IntArray, Split


class CtrSettings(Settings):
    """Which interactions become samples, and how they are split (ReLLa, section 4.1.1)."""

    minimum_history: int = Field(default=5, ge=1, description="Behaviours that a user must have had before a target.")
    train_share: float = Field(default=0.8, gt=0, lt=1, description="Share of the samples, the earliest, that train.")
    valid_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the samples, the next, that validate; the rest is the test."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the split of data without time.")

    @model_validator(mode="after")
    def _consistent(self) -> "CtrSettings":
        if self.train_share + self.valid_share >= 1:
            raise ValueError(
                f"train_share + valid_share = {self.train_share + self.valid_share:g} leaves no test split"
            )
        return self


@dataclass(frozen=True)
class CtrSamples:
    """N samples over interactions sorted by (user, time), in the order in which the split was cut.

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
    """Samples from interactions sorted by (user, time).

    With a clock every interaction with enough history is a sample, and the split is cut in global time, ties by user
    and position. Without one an order across users does not exist: each user's last interaction is their only sample,
    and the split is drawn by user.

    Args:
        user_index: (M,) user of each interaction, ascending.
        timestamp: (M,) int64.
        liked: (M,) bool.
        time: what ``timestamp`` means.

    Raises:
        InputError: no samples, an empty split, or a split with one class only.
    """
    users = np.asarray(user_index, dtype=np.int64)
    times, likes = np.asarray(timestamp, dtype=np.int64), np.asarray(liked, dtype=bool)
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
                f"the {split} split is empty: {len(samples)} interactions have {settings.minimum_history} or more "
                "before them by the same user; lower minimum_history, or use more data"
            )
        if labels.all() or not labels.any():
            only = "liked" if labels.all() else "disliked"
            raise InputError(
                f"all {len(labels)} targets of the {split} split are {only}, so nothing can be told apart; change the "
                "data set's label_threshold, or the split's shares"
            )


def ctr_leaks(samples: CtrSamples, timestamp: npt.ArrayLike, time: Time) -> dict[str, int]:
    """How many targets are in two splits, and with a clock how many are earlier than the split before theirs ends.

    Args:
        timestamp: (M,) of each interaction.
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
    """Ascending samples of a split: all, or ``most`` drawn with the seed; with one seed, few are a part of many."""
    rows = samples.rows(split)
    return draw_rows(np.arange(rows.start, rows.stop), most, seed)
