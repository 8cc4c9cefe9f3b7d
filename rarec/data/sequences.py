"""User sequences in time order, their leave-one-out split, and the windows that a sequence encoder reads.

A *prefix* is identified by the position ``p`` of its last item in the concatenated sequences: the prefix of user ``u``
at ``p`` is ``items[offsets[u] : p + 1]``, and its next item is ``items[p + 1]``. Training samples, memories, validation
and test queries are all such positions, so sequences are never copied.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rarec.config import Settings
from rarec.errors import InputError
from rarec.types import IntArray, Split

DAY_S = 86_400
HELD_OUT = 2  # leave-one-out: the last item is the test target, the one before it the validation target


class SequenceSettings(Settings):
    """Settings of the sequences."""

    window_days: float = Field(
        default=0,
        ge=0,
        description="Newest days, by the data set's own clock, that are kept out of all training, so that a candidate "
        "can be compared with the champion on them. 0 means none.",
    )

    def window_start(self, timestamps: IntArray, clock: bool) -> int | None:
        """Time in seconds from which on events are kept out of all training; None without a window.

        Raises:
            InputError: There is a window, but the data have no clock.
        """
        if not self.window_days:
            return None
        if not clock:
            raise InputError("window_days needs clock timestamps, but this data set has none; set window_days = 0")
        return int(timestamps.max()) + 1 - round(self.window_days * DAY_S)


def draw_rows(rows: IntArray, most: int, seed: int) -> IntArray:
    """Ascending rows: all, or ``most`` drawn at random. With the same seed, a smaller draw is part of a larger one."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def user_at(offsets: IntArray, position: IntArray) -> IntArray:
    """(N,) the user of each of N positions; user ``u`` owns positions ``offsets[u]`` to ``offsets[u + 1] - 1``."""
    return np.searchsorted(offsets, position, side="right") - 1


@dataclass(frozen=True)
class UserSequences:
    """Item sequences of all users, concatenated in time order.

    Attributes:
        offsets: (U + 1,) int64; user ``u`` owns positions ``offsets[u]`` to ``offsets[u + 1] - 1``.
        items: (N,) int64 item indices in ``[0, n_items)``.
        timestamps: (N,) seconds (int64, or float64 if some have fractions), or the order if the data have no clock.
        n_items: Size of the catalogue.
    """

    offsets: IntArray
    items: IntArray
    timestamps: IntArray
    n_items: int

    @property
    def n_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(U,) interactions of each user, including held-out ones."""
        return np.diff(self.offsets)

    @property
    def train_ends(self) -> IntArray:
        """(U,) position after each user's last training item. Short users train on everything they have."""
        lengths = self.lengths
        return self.offsets[1:] - np.where(lengths > HELD_OUT, HELD_OUT, 0)

    @property
    def user_of(self) -> IntArray:
        """(N,) the user of every position."""
        return np.repeat(np.arange(self.n_users), self.lengths)

    def evaluated_users(self) -> IntArray:
        """Users with a validation and a test target, that is, with at least three interactions."""
        return np.flatnonzero(self.lengths > HELD_OUT)

    def prefixes(self, split: Split) -> IntArray:
        """Ascending positions of the split's prefixes.

        ``train``: all proper prefixes of each user's training part. ``valid`` and ``test``: one prefix per evaluated
        user, in user order, of everything that the user did before the target.
        """
        if split == "train":
            starts, ends = self.offsets[:-1], self.train_ends
            users = np.flatnonzero(ends - starts > 1)
            # +1 at the first prefix and -1 after the last: the running sum marks every training prefix.
            marks = np.zeros(len(self.items) + 1, dtype=np.int64)
            np.add.at(marks, starts[users], 1)
            np.add.at(marks, ends[users] - 1, -1)
            is_prefix = np.cumsum(marks[:-1]) > 0
            return np.flatnonzero(is_prefix)
        ends = self.offsets[1:][self.evaluated_users()] - HELD_OUT
        return ends - 1 if split == "valid" else ends

    def before_test(self) -> "UserSequences":
        """What is known when the test split is asked: validation items belong to the training parts."""
        return _BeforeTest(self.offsets, self.items, self.timestamps, self.n_items)

    def tied_test_targets(self) -> float:
        """Share of evaluated users whose validation and test items have the same time; NaN if there are no such users.

        Which of the two comes last then depends on the order in the data.
        """
        last = self.offsets[1:][self.evaluated_users()] - 1
        return float((self.timestamps[last] == self.timestamps[last - 1]).mean()) if len(last) else float("nan")

    def next_items(self, prefixes: IntArray) -> IntArray:
        """The item that follows each prefix."""
        return self.items[prefixes + 1]

    def train_counts(self) -> IntArray:
        """(n_items,) training interactions of every item."""
        position = np.arange(len(self.items))
        in_train = position < np.repeat(self.train_ends, self.lengths)
        return np.bincount(self.items[in_train], minlength=self.n_items)

    def seen_before(self, prefixes: IntArray) -> tuple[IntArray, IntArray]:
        """All items of each prefix, as CSR (offsets, items)."""
        starts = self.offsets[self.user_of[prefixes]]
        counts = prefixes + 1 - starts
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return offsets, self.items[ranges(starts, counts)]

    def save(self, folder: Path) -> None:
        """Write the arrays as .npy files into ``folder``."""
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "items.npy", self.items.astype(np.int32))
        np.save(folder / "timestamps.npy", self.timestamps)
        np.save(folder / "n_items.npy", np.int64(self.n_items))

    @classmethod
    def load(cls, folder: Path) -> "UserSequences":
        """Read what `save` wrote."""
        return cls(
            offsets=np.load(folder / "offsets.npy"),
            items=np.load(folder / "items.npy").astype(np.int64),
            timestamps=np.load(folder / "timestamps.npy"),
            n_items=int(np.load(folder / "n_items.npy")),
        )


class _BeforeTest(UserSequences):
    @property
    def train_ends(self) -> IntArray:
        return super().train_ends + (self.lengths > HELD_OUT)


def ranges(starts: IntArray, counts: IntArray) -> IntArray:
    """Concatenation of ``arange(start, start + count)`` for every pair."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + counts, counts)


def as_times(timestamp: npt.ArrayLike) -> np.ndarray:
    """Times as an array: float64 if they have fractions of a second, else int64."""
    times = np.asarray(timestamp)
    return times if times.dtype == np.float64 else times.astype(np.int64)


def build_sequences(
    user_index: npt.ArrayLike,
    item_index: npt.ArrayLike,
    timestamp: npt.ArrayLike,
    n_users: int,
    n_items: int,
    short_users: Literal["error", "train-only"] = "error",
    user_names: npt.ArrayLike | None = None,
) -> UserSequences:
    """Make sequences from interactions that are sorted by (user, time).

    Raises:
        InputError: The interactions are not sorted, or a user is too short to be split and ``short_users`` is "error".
    """
    users = np.asarray(user_index, dtype=np.int64)
    times = as_times(timestamp)
    same_user = users[1:] == users[:-1]
    if np.any(users[1:] < users[:-1]) or np.any((times[1:] < times[:-1]) & same_user):
        raise InputError("interactions are not sorted by user and time; rebuild the asset `interactions`")
    counts = np.bincount(users, minlength=n_users)
    short = np.flatnonzero((counts > 0) & (counts <= HELD_OUT))
    if len(short) and short_users == "error":
        name = (range(n_users) if user_names is None else np.asarray(user_names).tolist())[short[0]]
        raise InputError(
            f"{len(short)} users have fewer than three interactions (first: user {name!r} with {counts[short[0]]}), "
            "too few for a validation and a test item; set k_core = 3 or more, or short_users = 'train-only', in the "
            "data set's file"
        )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return UserSequences(offsets, np.asarray(item_index, dtype=np.int64), times, n_items)


@dataclass(frozen=True)
class Windows:
    """Pieces of sequences that an encoder reads in one pass.

    Window ``w`` covers positions ``start[w]`` to ``start[w] + length[w] - 1``. It yields the representations of its
    last ``outputs[w]`` prefixes.
    """

    start: IntArray
    length: IntArray
    outputs: IntArray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: IntArray) -> "Windows":
        """The windows at ``index``, in that order."""
        return Windows(self.start[index], self.length[index], self.outputs[index])

    @classmethod
    def join(cls, *parts: "Windows") -> "Windows":
        """Concatenate the windows of all parts."""
        return cls(
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.length for part in parts]),
            np.concatenate([part.outputs for part in parts]),
        )

    def prefixes(self) -> IntArray:
        """Every prefix that the windows yield, window by window, ascending within each."""
        return ranges(self.start + self.length - self.outputs, self.outputs)


def context_starts(sequences: UserSequences, prefixes: IntArray, max_length: int, stride: int) -> IntArray:
    """Position of the first item that an encoder reads for each prefix.

    A prefix of at most ``max_length`` items is read from its start. A longer one is read from a multiple of ``stride``
    after the start, so that ``max_length - stride + 1`` to ``max_length`` of its latest items are read. ``stride = 1``
    is the papers' "last ``max_length`` items". With a larger stride, neighbouring prefixes can share one pass.
    """
    if not 1 <= stride <= max_length:
        raise InputError(f"context_stride is {stride}; it must be between 1 and max_length = {max_length}")
    # A search: `user_of` would take time and memory for all interactions at every training step.
    first = sequences.offsets[user_at(sequences.offsets, prefixes)]
    surplus = np.maximum(prefixes + 1 - first - max_length, 0)
    return first + -(-surplus // stride) * stride


def shared_windows(sequences: UserSequences, prefixes: IntArray, max_length: int, stride: int) -> Windows:
    """The fewest windows whose causal passes yield exactly ``prefixes`` (ascending), each with its own context.

    Consecutive prefixes of a user share a window if their contexts start at the same position.
    """
    starts = context_starts(sequences, prefixes, max_length, stride)
    opens = np.ones(len(prefixes), dtype=bool)
    opens[1:] = (starts[1:] != starts[:-1]) | (prefixes[1:] != prefixes[:-1] + 1)
    first = np.flatnonzero(opens)
    last = np.concatenate([first[1:], [len(prefixes)]]) - 1 if len(prefixes) else first
    start = starts[first]
    return Windows(start, prefixes[last] + 1 - start, last - first + 1)


def single_windows(sequences: UserSequences, prefixes: IntArray, max_length: int, stride: int) -> Windows:
    """One window per prefix, in the order given; each yields only its last prefix."""
    start = context_starts(sequences, prefixes, max_length, stride)
    return Windows(start, prefixes + 1 - start, np.ones(len(prefixes), dtype=np.int64))


def check_splits(sequences: UserSequences) -> tuple[bool, dict[str, int]]:
    """Whether no target is in two splits, and each user's training targets come before the validation and test target.

    Returns (passed, counts of targets and of faults).
    """
    targets = {split: sequences.prefixes(split) + 1 for split in ("train", "valid", "test")}
    together = np.concatenate(list(targets.values()))
    shared = len(together) - len(np.unique(together))
    owner = sequences.user_of
    foreign = int((owner[together] != owner[together - 1]).sum())
    last_train = np.full(sequences.n_users, -1)
    np.maximum.at(last_train, owner[targets["train"]], targets["train"])
    users = owner[targets["valid"]]
    late = int((last_train[users] >= targets["valid"]).sum() + (targets["valid"] >= targets["test"]).sum())
    out_of_time = int((np.diff(sequences.timestamps)[owner[1:] == owner[:-1]] < 0).sum())
    faults = {
        "shared_targets": shared,
        "targets_of_another_user": foreign,
        "late_targets": late,
        "out_of_time": out_of_time,
    }
    return not any(faults.values()), {**{f"{k}_targets": len(v) for k, v in targets.items()}, **faults}
