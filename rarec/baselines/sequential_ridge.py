"""A linear model of the next item, with a short and a long memory of the history, solved in closed form."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse

from rarec.baselines.histories import latest_items, rank_by_histories, weigh
from rarec.baselines.transitions import CHOSEN_BY, choose
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.types import IntArray

MEMORIES = ((0.6, 20, 1.0), (0.93, 50, 0.5))  # decay, latest items that count, weight
GRID = {"l2": (100.0, 200.0, 500.0), "target_power": (0.0, 0.1)}
_ROWS = 65_536  # prefixes of a block


@dataclass(frozen=True)
class RidgeSettings:
    """The penalty, and the power of an item's count by which its score is divided."""

    l2: float = 200.0
    target_power: float = 0.0


@dataclass(frozen=True)
class SequentialRidge:
    """Scores x B count^-target_power, where x holds the two memories of a history, side by side.

    A memory is the sum over the latest items h_i of weight decay^(n - i) e(h_i). B minimises |Y - X B|^2 + l2 |B|^2
    over all training prefixes, where Y has their next items, one-hot. In the manner of SLIT (Choi et al.,
    "Session-aware linear item-item models for session-based recommendation", WWW 2021).

    Attributes:
        settings: The penalty and the power.
        weights: (2I, I) float32 B, each column divided by its item's power.
    """

    settings: RidgeSettings
    weights: np.ndarray

    @classmethod
    def of(cls, sequences: UserSequences, settings: RidgeSettings, products: "_Products | None" = None) -> Self:
        """Solve for the training parts. Takes (2I)^3 operations and about 80 bytes a pair of items."""
        products = products or _Products.of(sequences)
        gram = torch.from_numpy(products.gram.copy())
        gram.diagonal().add_(settings.l2)
        factor = torch.linalg.cholesky(gram, out=gram)
        weights = torch.cholesky_solve(torch.from_numpy(products.cross), factor)
        counts = np.maximum(sequences.train_counts(), 1).astype(np.float32)
        # LAPACK's matrices lie column by column, and a sparse product would copy them into rows at each block.
        return cls(settings, np.ascontiguousarray(weights.numpy() * counts**-settings.target_power))

    def rank(self, sequences: UserSequences, prefixes: IntArray, block: int | None = None) -> RankingResult:
        """Ranks of the prefixes' next items."""
        return rank_by_histories(sequences, prefixes, (_memories(sequences, prefixes), self.weights), block=block)


@dataclass(frozen=True)
class _Products:
    """X'X (2I, 2I) and X'Y (2I, I), float32."""

    gram: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, sequences: UserSequences) -> Self:
        prefixes, items = sequences.prefixes("train"), sequences.n_items
        gram = np.zeros((2 * items, 2 * items), dtype=np.float32)
        cross = np.zeros((2 * items, items), dtype=np.float32)
        for start in range(0, len(prefixes), _ROWS):
            own = prefixes[start : start + _ROWS]
            x = _memories(sequences, own)
            following = weigh(np.arange(len(own)), sequences.next_items(own), np.ones(len(own)), (len(own), items))
            gram += (x.T @ x).toarray()
            cross += (x.T @ following).toarray()
        return cls(gram, cross)


def _memories(sequences: UserSequences, prefixes: IntArray) -> Any:
    """(P, 2I) sparse float32."""
    parts = []
    for decay, longest, weight in MEMORIES:
        rows, age, items = latest_items(sequences, prefixes, longest)
        shape = (len(prefixes), sequences.n_items)
        parts.append(weigh(rows, items, weight * np.asarray(decay, dtype=np.float64) ** age, shape))
    return sparse.hstack(parts, format="csr")


def choose_ridge(sequences: UserSequences, prefixes: IntArray) -> SequentialRidge:
    """The model whose settings rank the next items of these validation prefixes best, found one by one."""
    products = _Products.of(sequences)

    def make(settings: RidgeSettings) -> SequentialRidge:
        return SequentialRidge.of(sequences, settings, products)

    def figure(settings: RidgeSettings) -> float:
        return ranking_table(make(settings).rank(sequences, prefixes).rank)[CHOSEN_BY]

    return make(choose(RidgeSettings(), GRID, figure))
