"""Ranking baselines: the most popular items, and items that people had together with those of a history (item-KNN)."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor

from rarec.config import Settings
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, full_ranking, ranking_by_scores
from rarec.types import Float64Array, IntArray

POPULARITY, ITEM_KNN = "popularity", "item-KNN"
_PAIRS = 4_000_000  # pairs of items held at once


class RankingBaselineSettings(Settings):
    """Settings of the ranking baselines."""

    neighbours: int = Field(
        default=100, ge=1, description="Number of most similar items that each item of a history votes for (item-KNN)."
    )


@dataclass(frozen=True)
class ItemNeighbours:
    """The K most similar items of every item (ItemKNN; Deshpande and Karypis, 2004).

    The similarity of two items is the cosine of their columns in the binary matrix of users and training items: the
    number of users who had both, divided by the geometric mean of the numbers who had each.

    Attributes:
        similarity: (I, I) sparse; row j holds the similarities of item j's neighbours.
    """

    similarity: Any

    @classmethod
    def of(cls, sequences: UserSequences, neighbours: int) -> Self:
        """Compute neighbours from the training parts. Among equally similar items, the first are taken."""
        position = np.arange(len(sequences.items))
        train = position < np.repeat(sequences.train_ends, sequences.lengths)
        users, items = sequences.user_of[train], sequences.items[train]
        had = sparse.csr_matrix(
            (np.ones(len(items), dtype=np.float32), (users, items)), shape=(sequences.n_users, sequences.n_items)
        )
        had.data[:] = 1  # repeats count once
        of_item = had.T.tocsr()
        count = np.diff(of_item.indptr).astype(np.float64)
        # Bound on the size of a block's product: the items of each item's users, or all items.
        most = np.minimum(of_item @ np.diff(had.indptr), sequences.n_items)
        blocks = np.split(np.arange(sequences.n_items), np.flatnonzero(np.diff(most.cumsum() // _PAIRS)) + 1)
        kept = [_most_similar((of_item[block] @ had).tocoo(), block, count, neighbours) for block in blocks]
        row, column, value = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        shape = (sequences.n_items, sequences.n_items)
        return cls(sparse.csr_matrix((value.astype(np.float32), (row, column)), shape=shape))

    def rank(self, sequences: UserSequences, prefixes: IntArray, block: int | None = None) -> RankingResult:
        """Ranks of the prefixes' next items.

        An item's score is the sum of its similarities to those items of the history that have it as a neighbour.
        """
        offsets, seen = sequences.seen_before(prefixes)
        history = sparse.csr_matrix(
            (np.ones(len(seen), dtype=np.float32), seen, offsets), shape=(len(prefixes), sequences.n_items)
        )
        history.sum_duplicates()
        history.data[:] = 1

        def score(users: Tensor, scores: Tensor) -> None:
            scores.copy_(torch.from_numpy((history[users.numpy()] @ self.similarity).toarray()))

        return ranking_by_scores(
            score,
            (len(prefixes), sequences.n_items),
            torch.from_numpy(sequences.next_items(prefixes)),
            torch.from_numpy(offsets),
            torch.from_numpy(seen),
            block=block,
        )


def rank_by_popularity(sequences: UserSequences, prefixes: IntArray) -> RankingResult:
    """Ranks of the prefixes' next items by the number of training interactions of each item."""
    offsets, seen = sequences.seen_before(prefixes)
    return full_ranking(
        torch.ones(len(prefixes), 1),
        torch.from_numpy(sequences.train_counts()).float()[:, None],
        torch.from_numpy(sequences.next_items(prefixes)),
        torch.from_numpy(offsets),
        torch.from_numpy(seen),
    )


def _most_similar(
    together: Any, items: IntArray, count: Float64Array, neighbours: int
) -> tuple[IntArray, IntArray, Float64Array]:
    """Items, their neighbours and the cosines.

    Args:
        together: (b, I) sparse: number of users that ``items`` (b,) have in common with each item.
        count: (I,) number of users of each item.
    """
    row, column = items[together.row], together.col.astype(np.int64)
    other = row != column
    row, column = row[other], column[other]
    cosine = together.data[other] / np.sqrt(count[row] * count[column])
    order = np.lexsort((column, -cosine, row))
    row, column, cosine = row[order], column[order], cosine[order]
    near = np.arange(len(row)) - np.searchsorted(row, row) < neighbours
    return row[near], column[near], cosine[near]
