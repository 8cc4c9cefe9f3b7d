"""EASE: a linear model of which items a user has, solved in closed form (Steck, 2019)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from rarec.baselines.histories import binary_histories, rank_by_histories, training_matrix
from rarec.baselines.transitions import CHOSEN_BY
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.types import IntArray

L2 = (30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Ease:
    """Weights B of items: the scores of a user are x B, where x has 1 for every item of the history.

    B minimises |X - X B|^2 + l2 |B|^2 under diag(B) = 0 (Steck, "Embarrassingly shallow autoencoders for sparse data",
    WWW 2019, eq. 8), where X is the binary matrix of users and training items.

    Attributes:
        l2: The weight of the penalty.
        weights: (I, I) float32.
    """

    l2: float
    weights: np.ndarray

    @classmethod
    def of(cls, sequences: UserSequences, l2: float) -> Self:
        """Solve for the training parts. Takes I^3 operations and 8 I^2 bytes."""
        had = training_matrix(sequences)
        gram = torch.from_numpy((had.T @ had).toarray())
        gram.diagonal().add_(l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        del gram
        weights = inverse.div_(-inverse.diagonal().clone())
        weights.fill_diagonal_(0)
        return cls(l2, weights.numpy())

    def rank(self, sequences: UserSequences, prefixes: IntArray, block: int | None = None) -> RankingResult:
        """Ranks of the prefixes' next items."""
        return rank_by_histories(
            sequences, prefixes, (binary_histories(sequences, prefixes), self.weights), block=block
        )


def choose_ease(sequences: UserSequences, prefixes: IntArray) -> Ease:
    """The model whose penalty ranks the next items of these validation prefixes best."""
    best, reached = Ease.of(sequences, L2[0]), -1.0
    for l2 in L2:
        model = best if l2 == best.l2 else Ease.of(sequences, l2)
        if (found := ranking_table(model.rank(sequences, prefixes).rank)[CHOSEN_BY]) > reached:
            best, reached = model, found
    return best
