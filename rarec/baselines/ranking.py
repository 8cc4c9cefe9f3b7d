"""Ranking baselines: popularity, item-KNN, EASE, a sequential ridge, transitions, transitions with similar texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from scipy import sparse

from rarec.baselines.ease import Ease, choose_ease
from rarec.baselines.histories import binary_histories, rank_by_histories, training_matrix
from rarec.baselines.item_texts import choose_texts, text_similarity
from rarec.baselines.sequential_ridge import SequentialRidge, choose_ridge
from rarec.baselines.transitions import Transitions, choose_transitions
from rarec.config import Settings
from rarec.data.sequences import UserSequences, draw_rows
from rarec.metrics.ranking import RankingResult, full_ranking
from rarec.types import Float64Array, IntArray, Split

POPULARITY, ITEM_KNN, EASE, RIDGE = "popularity", "item-KNN", "EASE", "sequential ridge"
TRANSITIONS, TRANSITIONS_TEXTS = "transitions", "transitions + text"
CHOICE_SEED = 0
_Rank = Callable[[UserSequences, IntArray], RankingResult]
_PAIRS = 4_000_000  # pairs of items held at once


class RankingBaselineSettings(Settings):
    """Settings of the ranking baselines."""

    neighbours: int = Field(
        default=100, ge=1, description="Number of most similar items that each item of a history votes for (item-KNN)."
    )
    ease_items: int = Field(
        default=30_000,
        ge=0,
        description="Largest catalogue for which EASE is solved, which takes 8 bytes a pair of items; 0: never.",
    )
    ridge_items: int = Field(
        default=5000,
        ge=0,
        description="Largest catalogue for which the sequential ridge is solved, which takes 80 bytes a pair of items; "
        "0: never.",
    )
    choice_users: int = Field(
        default=5000, ge=1, description="Most validation users by whom the methods' own settings are chosen."
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
        had = training_matrix(sequences)
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
        return rank_by_histories(
            sequences, prefixes, (binary_histories(sequences, prefixes), self.similarity), block=block
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


@dataclass(frozen=True)
class RankingBaseline:
    """What a simple method found.

    Attributes:
        name: Its name in tables.
        rankings: Ranks of the targets of the validation and the test split.
        chosen: Its settings that were chosen on validation.
    """

    name: str
    rankings: dict[Split, RankingResult]
    chosen: dict[str, float]


def ranking_baselines(
    sequences: UserSequences, texts: Sequence[str] | None, settings: RankingBaselineSettings
) -> Iterator[RankingBaseline]:
    """All simple methods, one after the other.

    They learn from the training parts for the validation split, and choose their settings there. For the test split
    they learn again with the validation items, which the memory of our model gets, too.

    Args:
        sequences: The sequences.
        texts: (I,) text of each item; None if items have none.
        settings: Their settings.
    """
    valid = draw_rows(sequences.prefixes("valid"), settings.choice_users, CHOICE_SEED)
    known: Mapping[Split, UserSequences] = {"valid": sequences, "test": sequences.before_test()}

    def found(
        name: str, learn: Callable[[UserSequences], _Rank], chosen: Any = None, first: _Rank | None = None
    ) -> RankingBaseline:
        """Ranks of both splits; ``first`` ranks validation, if the choice of settings has already learnt for it."""
        rankings = {
            split: (first if first and split == "valid" else learn(own))(own, own.prefixes(split))
            for split, own in known.items()
        }
        return RankingBaseline(name, rankings, {} if chosen is None else asdict(chosen))

    yield found(POPULARITY, lambda _: rank_by_popularity)
    yield found(ITEM_KNN, lambda own: ItemNeighbours.of(own, settings.neighbours).rank)
    if sequences.n_items <= settings.ease_items:
        ease = choose_ease(sequences, valid)
        yield found(EASE, lambda own: Ease.of(own, ease).rank, ease)
    if sequences.n_items <= settings.ridge_items:
        ridge = choose_ridge(sequences, valid)
        yield found(RIDGE, lambda own: SequentialRidge.of(own, ridge.settings).rank, ridge.settings, ridge.rank)
        del ridge
    transitions = choose_transitions(sequences, valid)
    later = Transitions.of(known["test"], transitions.settings)
    yield found(TRANSITIONS, lambda _: later.rank, transitions.settings, transitions.rank)
    if texts is not None:
        sums = choose_texts(transitions, text_similarity(texts), sequences, valid)
        yield found(TRANSITIONS_TEXTS, lambda _: replace(sums, transitions=later).rank, sums.settings, sums.rank)


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
