"""Similar texts of items, and their sum with transitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from rarec.baselines.histories import latest_items, rank_by_histories, weigh
from rarec.baselines.transitions import CHOSEN_BY, LONGEST, Transitions, choose
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.types import IntArray

NEIGHBOURS = 100  # most similar items that are kept of each
BLOCK = 1024  # items at once
GRID = {"weight": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "decay": (0.2, 0.4, 0.6, 0.8, 0.9)}


def text_similarity(texts: Sequence[str]) -> Any:
    """(I, I) sparse float32: cosines of the items' TF-IDF vectors, of the `NEIGHBOURS` most similar items each.

    Args:
        texts: (I,) text of each item.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # not above: loading it takes a second

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+", dtype=np.float32).fit_transform(texts)
    blocks = []
    for start in range(0, len(texts), BLOCK):
        cosines = (vectors[start : start + BLOCK] @ vectors.T).toarray()
        own = np.arange(len(cosines))
        cosines[own, start + own] = 0
        if cosines.shape[1] > NEIGHBOURS:
            others = np.argpartition(cosines, -NEIGHBOURS, axis=1)[:, :-NEIGHBOURS]
            np.put_along_axis(cosines, others, 0, axis=1)
        blocks.append(sparse.csr_matrix(cosines))
    return sparse.vstack(blocks, format="csr")


@dataclass(frozen=True)
class TextSettings:
    """What similar texts add: the sum over the latest items h_i of weight decay^(n - i) cosine(h_i, j)."""

    weight: float = 0.01
    decay: float = 0.8


@dataclass(frozen=True)
class TransitionsAndTexts:
    """Transitions, and items whose texts are similar to those of the history.

    Attributes:
        transitions: The transitions.
        similarity: (I, I) sparse; see `text_similarity`.
        settings: What the texts add.
    """

    transitions: Transitions
    similarity: Any
    settings: TextSettings

    def rank(self, sequences: UserSequences, prefixes: IntArray, block: int | None = None) -> RankingResult:
        """Ranks of the prefixes' next items."""
        rows, age, items = latest_items(sequences, prefixes, LONGEST)
        weights = np.asarray(self.settings.weight * self.settings.decay**age, dtype=np.float64)
        texts = weigh(rows, items, weights, (len(prefixes), sequences.n_items))
        came_after = (self.transitions.histories(sequences, prefixes), self.transitions.matrix)
        return rank_by_histories(sequences, prefixes, came_after, (texts, self.similarity), block=block)


def choose_texts(
    transitions: Transitions, similarity: Any, sequences: UserSequences, prefixes: IntArray
) -> TransitionsAndTexts:
    """The sum whose settings rank the next items of these validation prefixes best."""

    def make(settings: TextSettings) -> TransitionsAndTexts:
        return TransitionsAndTexts(transitions, similarity, settings)

    def figure(settings: TextSettings) -> float:
        return ranking_table(make(settings).rank(sequences, prefixes).rank)[CHOSEN_BY]

    return make(choose(TextSettings(), GRID, figure))
