"""Ranking by histories: an item's score is a weighted sum of its similarities to the items of a history."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_by_scores
from rarec.types import Float64Array, IntArray


def training_positions(sequences: UserSequences) -> IntArray:
    """Ascending positions of all training interactions."""
    return np.flatnonzero(np.arange(len(sequences.items)) < np.repeat(sequences.train_ends, sequences.lengths))


def latest_items(sequences: UserSequences, prefixes: IntArray, longest: int) -> tuple[IntArray, IntArray, IntArray]:
    """The latest items of each prefix, at most ``longest`` of them.

    Returns their prefix (a row number), how many items came after them, and the items.
    """
    counts = np.minimum(prefixes + 1 - sequences.offsets[sequences.user_of[prefixes]], longest)
    row = np.repeat(np.arange(len(prefixes)), counts)
    age = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, age, sequences.items[prefixes[row] - age]


def weigh(rows: IntArray, items: IntArray, weights: Float64Array, shape: tuple[int, int]) -> Any:
    """(P, I) sparse float32: the weight of each item in the history of each prefix; those of repeats are added up."""
    history = sparse.csr_matrix((weights.astype(np.float32), (rows, items)), shape=shape)
    history.sum_duplicates()
    return history


def binary(rows: IntArray, items: IntArray, shape: tuple[int, int]) -> Any:
    """(P, I) sparse float32: 1 for every item of each row, repeats counted once."""
    had = weigh(rows, items, np.ones(len(rows)), shape)
    had.data[:] = 1
    return had


def training_matrix(sequences: UserSequences) -> Any:
    """(U, I) sparse float32: 1 for every training item of each user."""
    train = training_positions(sequences)
    return binary(sequences.user_of[train], sequences.items[train], (sequences.n_users, sequences.n_items))


def binary_histories(sequences: UserSequences, prefixes: IntArray) -> Any:
    """(P, I) sparse float32: 1 for every item of each prefix, repeats counted once."""
    offsets, seen = sequences.seen_before(prefixes)
    rows = np.repeat(np.arange(len(prefixes)), np.diff(offsets))
    return binary(rows, seen, (len(prefixes), sequences.n_items))


def rank_by_scores(
    sequences: UserSequences, prefixes: IntArray, scores_of: Callable[[IntArray], Any], block: int | None = None
) -> RankingResult:
    """Ranks of the prefixes' next items.

    Args:
        sequences: The sequences.
        prefixes: (P,) positions.
        scores_of: From row numbers (b,) of the prefixes to scores (b, I) of all items.
        block: Prefixes per block of scores.
    """
    offsets, seen = sequences.seen_before(prefixes)

    def score(users: Tensor, scores: Tensor) -> None:
        scores.numpy()[:] = scores_of(users.numpy())

    return ranking_by_scores(
        score,
        (len(prefixes), sequences.n_items),
        torch.from_numpy(sequences.next_items(prefixes)),
        torch.from_numpy(offsets),
        torch.from_numpy(seen),
        block=block,
    )


def rank_by_histories(
    sequences: UserSequences, prefixes: IntArray, *parts: tuple[Any, Any], block: int | None = None
) -> RankingResult:
    """Ranks of the prefixes' next items.

    Args:
        sequences: The sequences.
        prefixes: (P,) positions.
        parts: Pairs of histories (P, I), sparse, and similarities (I, I), sparse or dense. The scores are the sum of
            their products.
        block: Prefixes per block of scores.
    """

    def scores_of(rows: IntArray) -> Any:
        products = (history[rows] @ similarity for history, similarity in parts)
        return sum(product.toarray() if sparse.issparse(product) else product for product in products)

    return rank_by_scores(sequences, prefixes, scores_of, block)
