"""The histories in prompts: how varied they are, and how similar to the target (ReLLa, section 4.6)."""

from typing import Any

import numpy as np
import pandas as pd

from rarec.types import BoolArray, Distances, Float32Array, IntArray

_CHUNK = 4096


def genre_matrix(genres: pd.Series) -> BoolArray:
    """(I, G) which of the G genres each item has; ``genres`` are names separated by |, or missing."""
    dummies: Any = genres.fillna("").str.get_dummies(sep="|")
    dummies = dummies.drop(columns="", errors="ignore")  # in string columns, pandas makes empty text a genre of its own
    return dummies.to_numpy(dtype=bool)


def distinct_genres(genres: BoolArray, items: IntArray, position: IntArray, distances: Distances) -> float:
    """Mean number of distinct genres among the behaviours of a history.

    Args:
        genres: (I, G) as of `genre_matrix`.
        items: (M,) item of each interaction.
        position: (B,) interaction of each target.
        distances: (B, K) distances of the kept behaviours, 0 for none.
    """
    total = 0
    for start in range(0, len(position), _CHUNK):
        rows = slice(start, start + _CHUNK)
        kept = distances[rows].astype(np.int64)
        of_behaviour = genres[items[position[rows, None] - kept]] & (kept > 0)[:, :, None]
        total += int(of_behaviour.any(1).sum())
    return total / len(position)


def mean_similarity(vectors: Float32Array, items: IntArray, position: IntArray, distances: Distances) -> float:
    """Mean cosine between the vectors of the kept behaviours and of their target. Arguments: see `distinct_genres`."""
    total = count = 0.0
    for start in range(0, len(position), _CHUNK):
        rows = slice(start, start + _CHUNK)
        kept = distances[rows].astype(np.int64)
        cosine = np.einsum("bkd,bd->bk", vectors[items[position[rows, None] - kept]], vectors[items[position[rows]]])
        total += float(cosine[kept > 0].sum())
        count += float((kept > 0).sum())
    return total / count
