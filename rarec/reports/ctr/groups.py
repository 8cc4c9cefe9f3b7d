"""Groups of CTR samples: by the length of the history, and by the training interactions of the target."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rarec.metrics.groups import Groups
from rarec.reports.records import SHOWN_SPLITS
from rarec.types import Split

HISTORY, POPULARITY = "history length", "item popularity"
TAIL_SHARE, HEAD_SHARE = 0.2, 0.2


def history_groups(lengths: Mapping[Split, npt.ArrayLike]) -> dict[Split, Groups]:
    """Short, medium and long histories: terciles of the test samples, with the same edges on every split.

    Samples of equal length share a group. So groups are uneven, or even empty, if many lengths are equal. Without a
    test split, the terciles are those of the validation split.

    Args:
        lengths: (N,) behaviours before each sample of a split, N > 0.
    """
    edges = _edges(lengths[_reference(lengths)], (1 / 3, 2 / 3))
    labels = ("short", "medium", "long")
    descriptions = _ranges(edges, 0, "behaviours")
    return {
        split: Groups(HISTORY, labels, descriptions, np.searchsorted(edges, np.asarray(values), side="left"))
        for split, values in lengths.items()
    }


def target_groups(counts: Mapping[Split, npt.ArrayLike]) -> dict[Split, Groups]:
    """New, tail, mid and head items, with the same edges on every split.

    New items have no training interactions. Of the test samples with other items, about 20 % belong to the tail, whose
    targets have the fewest interactions, and about 20 % to the head, whose targets have the most. Equal counts share a
    group. Without a test split, the shares are those of the validation split.

    Args:
        counts: (N,) training interactions of each sample's target, N > 0.
    """
    reference = np.asarray(counts[_reference(counts)])
    known = reference[reference > 0]
    labels = ("new", "tail", "mid", "head")
    if len(known) == 0:
        known = np.ones(1, dtype=np.int64)
    edges = (0, *_edges(known, (TAIL_SHARE, 1 - HEAD_SHARE)))
    descriptions = ("no training interactions", *_ranges(edges[1:], 1, "training interactions"))
    return {
        split: Groups(POPULARITY, labels, descriptions, np.searchsorted(edges, np.asarray(values), side="left"))
        for split, values in counts.items()
    }


def _reference(values: Mapping[Split, npt.ArrayLike]) -> Split:
    """The split whose samples define the edges."""
    return next(split for split in SHOWN_SPLITS if split in values)


def _edges(values: npt.ArrayLike, shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(edge) for edge in np.quantile(np.asarray(values), shares, method="inverted_cdf"))


def _ranges(edges: Sequence[int], lowest: int, what: str) -> tuple[str, str, str]:
    """The three ranges between two edges, in words. A group includes its upper edge."""
    first, second = edges
    middle = f"{_span(first + 1, second)} {what}" if second > first else "none: the edges coincide"
    return f"{_span(lowest, first)} {what}", middle, f"more than {second:,} {what}"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
