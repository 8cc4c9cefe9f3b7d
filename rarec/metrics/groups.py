"""Item popularity and user activity groups, and the ranking metrics inside each group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rarec.errors import InputError
from rarec.metrics.ranking import CUTOFFS, Ranks, as_float_ranks, ranking_table
from rarec.types import IntArray

# Shares of the training interactions, in whole percent so that the bounds are exact.
HEAD_PERCENT = 20
TAIL_PERCENT = 20


@dataclass(frozen=True)
class Groups:
    """A division of items or users into named groups."""

    grouping: str
    """What items or users are grouped by: "item popularity" or "user activity"."""
    labels: tuple[str, ...]
    """The names of the groups."""
    descriptions: tuple[str, ...]
    """What belongs to each group, with its bounds in these data."""
    index: IntArray
    """(N,) the group of each item or user as a position in `labels`; -1 for none."""

    def of(self, members: npt.ArrayLike) -> "Groups":
        """Groups of other rows by the member each points to, such as users by their target item; -1 has no group."""
        rows = np.asarray(members, dtype=np.int64)
        if len(rows) and (rows.min() < -1 or rows.max() >= len(self.index)):
            raise InputError(
                f"members must be between -1 and {len(self.index) - 1} to have a group by {self.grouping}."
            )
        return Groups(self.grouping, self.labels, self.descriptions, np.append(self.index, -1)[rows])


@dataclass(frozen=True)
class GroupResult:
    """The ranking metrics of the users in one group."""

    grouping: str
    group: str
    description: str
    n_users: int
    """Users of the group who have a target."""
    metrics: dict[str, float]
    """Means as in `ranking_table`; NaN where `n_users` is 0."""


def popularity_groups(training_counts: npt.ArrayLike) -> Groups:
    """Head, mid and tail items by their number of training interactions.

    Items are sorted by count, the highest first, equal counts by item index. Going down that list, the head takes
    items until it holds 20 % of all training interactions (the item that crosses the line included), the mid goes on
    until 80 %, and the tail is the rest: the division of Abdollahpouri et al., "User-centered evaluation of popularity
    bias in recommender systems" (UMAP 2021). An item without training interactions is always tail.

    Args:
        training_counts: (I,) training interactions of each item.

    Raises:
        InputError: A count is negative.
    """
    counts = _counts("training_counts", training_counts)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    total = counts.sum()
    position = (100 * before >= HEAD_PERCENT * total).astype(np.int64) + (100 * before >= (100 - TAIL_PERCENT) * total)
    index = np.empty(len(counts), dtype=np.int64)
    index[order] = np.where(counts[order] == 0, 2, position)
    shares = (
        f"the first {HEAD_PERCENT}% of training interactions",
        f"the next {100 - HEAD_PERCENT - TAIL_PERCENT}% of training interactions",
        f"the last {TAIL_PERCENT}%, and items without any",
    )
    descriptions = tuple(f"{share} ({np.sum(index == group):,} items)" for group, share in enumerate(shares))
    return Groups("item popularity", ("head", "mid", "tail"), descriptions, index)


def activity_groups(training_lengths: npt.ArrayLike) -> Groups:
    """Low, medium and high activity by the number of training interactions of each user.

    The bounds are the lengths at one third and two thirds of the users sorted by length. Users of equal length share a
    group. So groups are uneven, or even empty, if many users have the same length.

    Args:
        training_lengths: (U,) training interactions of each user.

    Raises:
        InputError: A length is negative.
    """
    lengths = _counts("training_lengths", training_lengths)
    labels = ("low", "medium", "high")
    if len(lengths) == 0:
        return Groups("user activity", labels, ("no users",) * 3, lengths)
    first, second = (int(bound) for bound in np.quantile(lengths, (1 / 3, 2 / 3), method="inverted_cdf"))
    index = np.searchsorted((first, second), lengths, side="left").astype(np.int64)
    descriptions = (
        f"at most {first} training interactions",
        f"{first + 1} to {second} training interactions" if second > first else "nobody: the tertile bounds coincide",
        f"more than {second} training interactions",
    )
    return Groups("user activity", labels, descriptions, index)


def metrics_by_group(rank: Ranks, groups: Groups, ks: Sequence[int] = CUTOFFS) -> list[GroupResult]:
    """The ranking table of the users in each group, in the order of the labels.

    Args:
        rank: (U,) ranks from 1; users without target are not counted.
        groups: Groups of the U users; for the popularity of their targets, `popularity_groups(...).of(targets)`.
        ks: The cutoffs.
    """
    ranks = as_float_ranks(rank)
    if ranks.shape != groups.index.shape:
        raise InputError(
            f"There are {len(ranks)} ranks, but {len(groups.index)} users have a group by {groups.grouping}."
        )
    results = []
    for number, (label, description) in enumerate(zip(groups.labels, groups.descriptions, strict=True)):
        members = ranks[(groups.index == number) & ~np.isnan(ranks)]
        results.append(GroupResult(groups.grouping, label, description, len(members), ranking_table(members, ks)))
    return results


def _counts(name: str, values: npt.ArrayLike) -> IntArray:
    """Counts as int64, none negative."""
    counts = np.asarray(values, dtype=np.int64)
    if (counts < 0).any():
        raise InputError(f"{name} has a negative number ({counts.min()}); give numbers of interactions.")
    return counts
