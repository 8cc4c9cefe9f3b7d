"""What is recommended, right or wrong: catalogue coverage and popularity of the recommended items."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # loads its parts when they are used
from torch import Tensor

from rarec.errors import InputError


@dataclass(frozen=True)
class RecommendationStats:
    """Figures of the first n places of all users' lists. NaN if no item is recommended (coverage: if I is 0)."""

    n: int
    coverage: float
    """Distinct recommended items / all items."""
    mean_training_count: float
    """Mean training interactions of a recommended item, each recommendation counted once."""
    mean_popularity_percentile: float
    """Mean popularity percentile of a recommended item; 50 is what uniformly random recommendations give."""


def recommendation_stats(
    top_items: Tensor | npt.ArrayLike, training_counts: npt.ArrayLike, n: int
) -> RecommendationStats:
    """Coverage and popularity of the first n recommendations of each user.

    An item's popularity percentile is 100 * (items with a smaller training count + half of the items with an equal
    count, itself included) / I.

    Args:
        top_items: (U, at least n) item indices, best first; -1 where the list ends early.
        training_counts: (I,) interactions of each item in the training part.
        n: Number of places of each list to look at.

    Raises:
        InputError: The lists are shorter than n, or hold an item outside 0..I - 1.
    """
    lists = np.asarray(top_items.cpu() if isinstance(top_items, Tensor) else top_items, dtype=np.int64)
    counts = np.asarray(training_counts, dtype=np.int64)
    if lists.ndim != 2 or lists.shape[1] < n:
        raise InputError(f"Lists of shape {lists.shape} have fewer than {n} places; rank with top_n = {n} or more.")
    items = lists[:, :n].ravel()
    items = items[items != -1]
    if len(items) and not (items.min() >= 0 and items.max() < len(counts)):
        raise InputError(
            f"The lists hold items {items.min()} to {items.max()}, but there are only {len(counts)} items."
        )
    times = np.bincount(items, minlength=len(counts))
    percentile = 100 * (scipy.stats.rankdata(counts, method="average") - 0.5) / max(len(counts), 1)
    nan = float("nan")
    return RecommendationStats(
        n=n,
        coverage=float(np.count_nonzero(times) / len(counts)) if len(counts) else nan,
        mean_training_count=float(times @ counts / len(items)) if len(items) else nan,
        mean_popularity_percentile=float(times @ percentile / len(items)) if len(items) else nan,
    )
