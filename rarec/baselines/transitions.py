"""Transitions: what came after what in the training parts, near items counting more than distant ones.

A simple method that few sequence models beat on sparse data. Its settings are chosen on validation, one after the
other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self, TypeVar

import numpy as np
from scipy import sparse

from rarec.baselines.histories import latest_items, rank_by_histories, weigh
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.types import Float64Array, IntArray

S = TypeVar("S", bound=Any)

LONGEST = 20  # latest items of a history that count
CHOSEN_BY = "NDCG@10"  # unmasked, on validation
MOST_PASSES = 2  # over the grid


@dataclass(frozen=True)
class TransitionSettings:
    """What transitions count, and how the items of a history add up.

    The score of item j after h_1, ..., h_n is the sum over the latest items h_i of

        decay^(n - i) count(h_i)^-source_power T(h_i, j) count(j)^-target_power

    where count is the number of training interactions, and T(a, b) the sum of d^-distance_power over all pairs in which
    b came d <= window places after a, plus ``backward`` times that over the pairs in which b came before a.
    """

    window: int = 10
    distance_power: float = 1.0
    backward: float = 0.0
    source_power: float = 0.5
    target_power: float = 0.5
    decay: float = 0.8


# In the order in which they are chosen.
GRID: Mapping[str, Sequence[float]] = {
    "decay": (0.2, 0.4, 0.6, 0.7, 0.8, 0.9),
    "target_power": (0.0, 0.15, 0.3, 0.45, 0.6),
    "source_power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "backward": (0.0, 0.3, 1.0),
    "window": (2, 5, 10, 20, 50),
    "distance_power": (0.5, 1.0, 1.5, 2.0),
}


@dataclass(frozen=True)
class Transitions:
    """Transitions of the training parts.

    Attributes:
        settings: How they were counted.
        counts: (I,) training interactions of each item, at least 1.
        matrix: (I, I) sparse float32; row a holds T(a, b) count(b)^-target_power.
    """

    settings: TransitionSettings
    counts: Float64Array
    matrix: Any

    @classmethod
    def of(cls, sequences: UserSequences, settings: TransitionSettings) -> Self:
        """Count the transitions of the training parts. An item is no transition of its own."""
        ends = np.repeat(sequences.train_ends, sequences.lengths)
        position = np.arange(len(sequences.items))
        shape = (sequences.n_items, sequences.n_items)
        matrix = sparse.csr_matrix(shape, dtype=np.float64)
        for distance in range(1, settings.window + 1):
            first = np.flatnonzero(position + distance < ends)
            if not len(first):
                break
            pair = (sequences.items[first], sequences.items[first + distance])
            weight = float(distance) ** -settings.distance_power
            matrix = matrix + sparse.csr_matrix((np.full(len(first), weight), pair), shape=shape)
        if settings.backward:
            matrix = matrix + settings.backward * matrix.T.tocsr()
        matrix.setdiag(0)
        matrix.eliminate_zeros()
        counts = np.maximum(sequences.train_counts(), 1).astype(np.float64)
        return cls(settings, counts, (matrix @ sparse.diags(counts**-settings.target_power)).tocsr().astype(np.float32))

    def histories(self, sequences: UserSequences, prefixes: IntArray) -> Any:
        """(P, I) sparse: what each item of a history weighs."""
        rows, age, items = latest_items(sequences, prefixes, LONGEST)
        weights = self.settings.decay**age * self.counts[items] ** -self.settings.source_power
        return weigh(rows, items, weights, (len(prefixes), sequences.n_items))

    def rank(self, sequences: UserSequences, prefixes: IntArray, block: int | None = None) -> RankingResult:
        """Ranks of the prefixes' next items."""
        return rank_by_histories(sequences, prefixes, (self.histories(sequences, prefixes), self.matrix), block=block)


def choose_transitions(sequences: UserSequences, prefixes: IntArray) -> Transitions:
    """The transitions whose settings rank the next items of these validation prefixes best, one setting at a time."""
    made: dict[tuple[float, ...], Transitions] = {}

    def make(settings: TransitionSettings) -> Transitions:
        # Two of the settings do not change what is counted.
        key = (settings.window, settings.distance_power, settings.backward, settings.target_power)
        if key not in made:
            made.clear()  # a matrix may take much memory, and settings change one by one
            made[key] = Transitions.of(sequences, settings)
        return replace(made[key], settings=settings)

    def figure(settings: TransitionSettings) -> float:
        return ranking_table(make(settings).rank(sequences, prefixes).rank)[CHOSEN_BY]

    return make(choose(TransitionSettings(), GRID, figure))


def choose(start: S, grid: Mapping[str, Sequence[float]], figure: Callable[[S], float]) -> S:
    """The best of the settings that are reached from ``start`` by changing one at a time, in the order of the grid."""
    figure = cache(figure)
    best, reached = start, figure(start)
    for _ in range(MOST_PASSES):
        before = best
        for name, values in grid.items():
            for value in values:
                tried = replace(best, **{name: value})
                if tried != best and (found := figure(tried)) > reached:
                    best, reached = tried, found
        if best == before:
            break
    return best
