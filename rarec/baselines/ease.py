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
class EaseSettings:
    """The weight of EASE's penalty."""

    l2: float


@dataclass(frozen=True)
class Ease:
    """Weights B of items: the scores of a user are x B, where x has 1 for every item of the history.

    B minimises |X - X B|^2 + l2 |B|^2 under diag(B) = 0 (Steck, "Embarrassingly shallow autoencoders for sparse data",
    WWW 2019, eq. 8), where X is the binary matrix of users and training items.

    Attributes:
        weights: (I, I) float32.
    """

    weights: np.ndarray

    @classmethod
    def of(cls, sequences: UserSequences, settings: EaseSettings) -> Self:
        """Solve for the training parts. Takes I^3 operations, and 4 I^2 bytes beside the weights' own."""
        had = training_matrix(sequences)
        gram = torch.from_numpy((had.T @ had).toarray())
        gram.diagonal().add_(settings.l2)
        # LAPACK's matrices lie column by column, and a sparse product would copy them into rows at each block.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram)).mT.contiguous()  # it is symmetric
        weights = inverse.div_(-inverse.diagonal().clone())
        weights.fill_diagonal_(0)
        return cls(weights.numpy())

    def rank(self, sequences: UserSequences, prefixes: IntArray, block: int | None = None) -> RankingResult:
        """Ranks of the prefixes' next items."""
        return rank_by_histories(
            sequences, prefixes, (binary_histories(sequences, prefixes), self.weights), block=block
        )


def choose_ease(sequences: UserSequences, prefixes: IntArray) -> EaseSettings:
    """The penalty with which EASE ranks the next items of these validation prefixes best."""

    def figure(settings: EaseSettings) -> float:
        return ranking_table(Ease.of(sequences, settings).rank(sequences, prefixes).rank)[CHOSEN_BY]

    return max(map(EaseSettings, L2), key=figure)
