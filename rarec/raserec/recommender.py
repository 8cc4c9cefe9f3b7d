"""RaSeRec as a recommender: encoder, memory bank and retrieval-augmented module together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, full_ranking
from rarec.raserec.encoders import SequenceEncoder, load_encoder
from rarec.raserec.finetune import Memories, augment, find_neighbours
from rarec.raserec.retrieval_module import RetrievalAugmentedModule, load_module
from rarec.retrieval.memory import NO_USER, MemoryBank, Queries
from rarec.training.engine import worker_device
from rarec.types import BoolArray, Float32Array, IntArray

NOW = np.iinfo(np.int64).max  # later than anything known


@dataclass
class Recommender:
    """A trained model of both stages. `remember` refreshes its memory without training."""

    encoder: SequenceEncoder
    bank: MemoryBank
    module: RetrievalAugmentedModule
    _memories: Memories | None = None  # kept, as online queries come one by one

    @classmethod
    def load(cls, encoder: Path, bank: Path, module: Path, fingerprint: str, n_items: int | None = None) -> Self:
        """Load a recommender from three folders.

        Args:
            fingerprint: The encoder's.
            n_items: Size of the catalogue, to check.

        Raises:
            InputError: Bank or module belong to another encoder, or the encoder to another catalogue.
        """
        memory = MemoryBank.load(bank)
        memory.require_encoder(fingerprint)
        device = worker_device()
        return cls(load_encoder(encoder, n_items).to(device), memory, load_module(module, fingerprint).to(device))

    @property
    def item_embeddings(self) -> Tensor:
        """(I, D) of the encoder."""
        return self.encoder.item_embedding.detach()

    def represent(
        self,
        sequences: UserSequences,
        prefixes: IntArray,
        known_users: bool = True,
        asked_at: IntArray | int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Representations (Q, D) of prefixes, before and after augmentation.

        Args:
            known_users: False if the sequences belong to people outside the data, who have no memories of their own.
            asked_at: Time of the query in seconds, one or (Q,); by default the time of the prefix's last item. What
                became known in between is then no longer the query's future.
        """
        vectors, queries = self.encoded(sequences, prefixes)
        if not known_users:
            queries = replace(queries, users=np.full_like(queries.users, NO_USER))
        if asked_at is not None:
            queries = replace(queries, times=np.broadcast_to(asked_at, queries.times.shape))
        return vectors, self.augmented(vectors, queries)

    def encoded(self, sequences: UserSequences, prefixes: IntArray) -> tuple[Tensor, Queries]:
        """Representations (Q, D) of prefixes of known users before augmentation, and their queries to the memory."""
        vectors = self.encoder.encode(sequences, prefixes)
        return vectors, Queries.of(sequences, prefixes, vectors.cpu().numpy())

    def augmented(self, vectors: Tensor, queries: Queries) -> Tensor:
        """(Q, D) representations after augmentation with what is remembered now."""
        embeddings = self.item_embeddings
        found = find_neighbours(self.bank, queries, embeddings.cpu().numpy(), self.module.settings).to(vectors.device)
        if self._memories is None:
            self._memories = Memories(self.bank, embeddings)
        return augment(self.module, vectors, found, self._memories)

    def remember(self, sequences: UserSequences, prefixes: IntArray) -> None:
        """Append prefixes and their next items to the memory of this object."""
        self._memories = None
        self.bank = self.bank.copy()
        self.bank.append(sequences, prefixes, self.encoder.encode(sequences, prefixes).cpu().numpy())

    def rank(self, vectors: Tensor, sequences: UserSequences, prefixes: IntArray, top_n: int) -> RankingResult:
        """Ranks of the prefixes' next items, if they have any, and the best ``top_n`` items."""
        behind = prefixes + 1
        has_target = behind < sequences.offsets[sequences.user_of[prefixes] + 1]
        targets = np.where(has_target, sequences.items[np.where(has_target, behind, 0)], -1)
        offsets, seen = sequences.seen_before(prefixes)
        return full_ranking(
            vectors,
            self.item_embeddings,
            torch.from_numpy(targets),
            torch.from_numpy(offsets),
            torch.from_numpy(seen),
            top_n=top_n,
        )


@dataclass(frozen=True)
class RecommendationLists:
    """The best N items of U users.

    Attributes:
        items: (U, N) item indices, best first; -1 if there are fewer.
        scores: (U, N) the model's scores; NaN if it gave none.
        by_popularity: (U,) whether a user's list holds the most popular items.
    """

    items: IntArray
    scores: Float32Array
    by_popularity: BoolArray


def recommend_users(
    recommender: Recommender, sequences: UserSequences, top_n: int, exclude_seen: bool = True
) -> RecommendationLists:
    """Recommend items to all users, from their whole sequences.

    Users with an empty sequence, who did nothing that the model knows, get the items with the most interactions; among
    ties, the first.
    """
    idle = sequences.lengths == 0
    active = np.flatnonzero(~idle)
    items = np.full((sequences.n_users, top_n), -1, dtype=np.int64)
    scores = np.full(items.shape, np.nan, dtype=np.float32)
    latest = sequences.offsets[1:][active] - 1
    _, vectors = recommender.represent(sequences, latest, asked_at=NOW)
    best, score = recommender.rank(vectors, sequences, latest, top_n).lists(exclude_seen)
    items[active], scores[active] = best.numpy(), score.numpy()
    counts = np.bincount(sequences.items, minlength=sequences.n_items)
    popular = np.argsort(-counts, kind="stable")[: min(top_n, np.count_nonzero(counts))]
    items[np.ix_(idle, np.arange(len(popular)))] = popular
    return RecommendationLists(items, scores, idle)


def recommend_histories(
    recommender: Recommender, histories: Sequence[Sequence[int]], top_n: int, exclude_seen: bool = True
) -> list[tuple[IntArray, Float32Array]]:
    """Recommend items for histories (item indices, oldest first) of people outside the data.

    Returns item indices and scores, best first. An empty history gets empty lists.
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    sequences = UserSequences(offsets, items, np.zeros_like(items), len(recommender.item_embeddings))
    asked = np.flatnonzero(lengths)
    result = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)) for _ in histories]
    if len(asked) == 0:
        return result
    prefixes = offsets[1:][asked] - 1
    _, vectors = recommender.represent(sequences, prefixes, known_users=False, asked_at=NOW)
    ranking = recommender.rank(vectors, sequences, prefixes, top_n)
    top_items, top_scores = ranking.lists(exclude_seen)
    for row, history in enumerate(asked):
        real = top_items[row] >= 0
        result[history] = (top_items[row][real].numpy(), top_scores[row][real].numpy())
    return result
