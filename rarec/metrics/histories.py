"""What stands in the histories of prompts: how varied it is, and how close to the target (ReLLa, section 4.6)."""

from typing import Any

import numpy as np
import pandas as pd

from rarec.types import BoolArray, Distances, Float32Array, IntArray

_CHUNK = 4096


def genre_matrix(genres: pd.Series) -> BoolArray:
    """(I, G) which of the G genres each item has; ``genres`` holds names with | between them, or nothing."""
    dummies: Any = genres.fillna("").str.get_dummies(sep="|")
    dummies = dummies.drop(columns="", errors="ignore")  # pandas makes nothing a genre of its own in a string column
    return dummies.to_numpy(dtype=bool)


def distinct_genres(genres: BoolArray, items: IntArray, position: IntArray, distances: Distances) -> float:
    """Mean number of distinct genres among the behaviours of a history.

    Args:
        genres: (I, G) as of `genre_matrix`.
        items: (M,) item of each interaction.
        position: (B,) interaction of each target.
        distances: (B, K) of the behaviours kept, 0 for none.
    """
    total = 0
    for start in range(0, len(position), _CHUNK):
        rows = slice(start, start + _CHUNK)
        kept = distances[rows].astype(np.int64)
        of_behaviour = genres[items[position[rows, None] - kept]] & (kept > 0)[:, :, None]
        total += int(of_behaviour.any(1).sum())
    return total / len(position)


def mean_similarity(vectors: Float32Array, items: IntArray, position: IntArray, distances: Distances) -> float:
    """Mean cosine of the kept behaviours' vectors with their target's; arguments as of `distinct_genres`."""
    total = count = 0.0
    for start in range(0, len(position), _CHUNK):
        rows = slice(start, start + _CHUNK)
        kept = distances[rows].astype(np.int64)
        cosine = np.einsum("bkd,bd->bk", vectors[items[position[rows, None] - kept]], vectors[items[position[rows]]])
        total += float(cosine[kept > 0].sum())
        count += float((kept > 0).sum())
    return total / count


def random_behaviours(length: IntArray, k: int, seed: int) -> Distances:
    """(B, k) distances of k behaviours drawn from histories of ``length`` (B,), all of a shorter one, chronological."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros((len(length), k), dtype=np.int64)
    for row, n in enumerate(length.tolist()):
        some = np.sort(generator.choice(n, min(k, n), replace=False) + 1)[::-1]
        drawn[row, k - len(some) :] = some
    return drawn
