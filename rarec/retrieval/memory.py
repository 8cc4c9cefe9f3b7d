"""The collaborative memory bank: what users in similar states chose next (RaSeRec, section 3.3).

A memory is a prefix with its representation and its next item. The bank can be searched by either half: for similar
users (channel 1), or for next items that suit the query (channel 2). It carries the fingerprint of the encoder that
made the representations, and refuses queries of another encoder.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from rarec.data.sequences import UserSequences, ranges
from rarec.errors import InputError
from rarec.retrieval.exact import ExactSearch
from rarec.retrieval.index import can_use_gpu, gpus_of_this_process, new_index, normalised
from rarec.retrieval.settings import MemorySettings
from rarec.training.engine import worker_device
from rarec.training.progress import ReportProgress, quiet
from rarec.types import BoolArray, Float32Array, IntArray

NO_USER = -1  # of a query by someone who is not in the data

# Bounds on memory, and on the work between two progress reports: queries of one search (as many as Faiss itself takes
# at once), and candidate memories that are sorted at once.
_CHUNK = 4096
_CANDIDATES = 1_000_000
_ARRAYS = ("representations", "users", "prefixes", "targets", "known_at")

BANK_FILES = ("bank.json", "index.faiss", *(f"{name}.npy" for name in _ARRAYS))


@dataclass(frozen=True)
class Queries:
    """Q queries to a memory bank.

    Attributes:
        vectors: (Q, D) user representations; only their directions count.
        users: (Q,) user index, or `NO_USER`.
        prefixes: (Q,) position of each query's last item, to compare with memories of the same user.
        times: (Q,) time of each query's last item, for the time cut.
    """

    vectors: Float32Array
    users: IntArray
    prefixes: IntArray
    times: IntArray

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, sequences: UserSequences, prefixes: IntArray, vectors: Float32Array) -> Self:
        """Queries for prefixes of known users, with their representations (Q, D)."""
        return cls(vectors, sequences.user_of[prefixes], prefixes, sequences.timestamps[prefixes])

    def __getitem__(self, rows: Any) -> "Queries":
        return Queries(self.vectors[rows], self.users[rows], self.prefixes[rows], self.times[rows])


@dataclass
class MemoryBank:
    """N memories and the Faiss index over their representations.

    Attributes:
        representations: (N, D) as the encoder made them.
        users, prefixes, targets: (N,) user, position of the prefix's last item, and next item of each memory.
        known_at: (N,) time of the next item: when the memory became known.
        encoder: Fingerprint of the encoder.
        settings: Kind of index, and rules against leakage.
        index: Faiss index over the L2-normalised representations; row numbers are its ids.
    """

    representations: Float32Array
    users: IntArray
    prefixes: IntArray
    targets: IntArray
    known_at: IntArray
    encoder: str
    settings: MemorySettings
    index: Any
    _gpu_index: Any = None
    _by_item: tuple[Any, ...] | None = None

    @classmethod
    def build(
        cls,
        sequences: UserSequences,
        prefixes: IntArray,
        representations: Float32Array,
        encoder: str,
        settings: MemorySettings,
    ) -> Self:
        """Build a bank from ``prefixes`` and their (N, D) ``representations``.

        Raises:
            InputError: There are no memories, or more inverted lists than memories.
        """
        if len(prefixes) == 0:
            raise InputError("the memory bank would be empty, as no user has two training interactions; use more data")
        index = new_index(normalised(representations), settings, "memories of the bank")
        empty = np.zeros(0, dtype=np.int64)
        nothing = np.zeros((0, representations.shape[1]), dtype=np.float32)
        bank = cls(nothing, empty, empty, empty, empty, encoder, settings, index)
        bank.append(sequences, prefixes, representations)
        return bank

    def __len__(self) -> int:
        return len(self.prefixes)

    def append(self, sequences: UserSequences, prefixes: IntArray, representations: Float32Array) -> None:
        """Append memories. Nothing is rebuilt."""
        self._by_item = None
        self.index.add(normalised(representations))
        self.representations = np.concatenate([self.representations, representations])
        self.users = np.concatenate([self.users, sequences.user_of[prefixes]])
        self.prefixes = np.concatenate([self.prefixes, prefixes])
        self.targets = np.concatenate([self.targets, sequences.next_items(prefixes)])
        self.known_at = np.concatenate([self.known_at, sequences.timestamps[prefixes + 1]])

    def keep(self, chosen: BoolArray | IntArray) -> None:
        """Forget all memories but the chosen ones. A trained index stays trained.

        Args:
            chosen: (N,) bool mask, or ids, in whose order the memories then are.
        """
        self._by_item = None
        for name in _ARRAYS:
            setattr(self, name, getattr(self, name)[chosen])
        self.index.reset()
        self.index.add(normalised(self.representations))

    def copy(self) -> "MemoryBank":
        """A copy that can be appended to without changing this bank."""
        return replace(self, index=faiss.clone_index(self.index), _gpu_index=None)

    def require_encoder(self, fingerprint: str) -> None:
        """Check that the encoder with this fingerprint made the representations.

        Raises:
            InputError: Another encoder did.
        """
        if fingerprint != self.encoder:
            raise InputError(
                f"the memory bank was made by encoder {self.encoder} and cannot serve encoder {fingerprint}; "
                "materialise `memory_bank` again with the current `raserec_pretrained`"
            )

    def allowed(self, queries: Queries, ids: IntArray) -> BoolArray:
        """(Q, K) which of the memories ``ids`` (Q, K; -1 for none) each query may see.

        Memories of the query's own user must have strictly shorter prefixes. With the time cut, memories must have been
        known at the time of the query.
        """
        known = ids >= 0
        safe = np.where(known, ids, 0)
        own = self.users[safe] == queries.users[:, None]
        future = own & (self.prefixes[safe] >= queries.prefixes[:, None])
        if self.settings.time_cut:
            future |= self.known_at[safe] > queries.times[:, None]
        return known & ~future

    def similar_users(self, queries: Queries, k: int, report: ReportProgress = quiet) -> IntArray:
        """(Q, k) ids of the k allowed memories most similar to each query, best first; -1 if there are fewer.

        Similarity is the cosine of representations. The search fetches more than k memories, removes those that are not
        allowed, and searches again for queries that are left with too few. So a flat index gives the exact answer.
        ``report`` is told how many queries are answered, since searching a large bank takes long.
        """
        self._require(k)
        answered = _Answered(len(queries), report)
        found = np.full((len(queries), k), -1, dtype=np.int64)
        vectors = normalised(queries.vectors)
        for rows, search in self._searches(queries):
            surplus = 16
            while len(rows):
                fetch = min(k + surplus, len(self))
                pending = []
                for start in range(0, len(rows), _CHUNK):
                    part = rows[start : start + _CHUNK]
                    ids = search(vectors[part], fetch)
                    kept, counts = first_allowed(ids, self.allowed(queries[part], ids), k)
                    found[part] = kept
                    # A full list may not be all there is; one with gaps is.
                    more = (counts < k) & (ids[:, -1] >= 0) & (fetch < len(self))
                    pending.append(part[more])
                    answered.add(int((~more).sum()))
                rows = np.concatenate(pending)
                surplus *= 4
        answered.end()
        return found

    def drawn(self, queries: Queries, k: int, seed: int) -> IntArray:
        """(Q, k) ids of allowed memories drawn at random with replacement; -1 where hardly any are allowed.

        This is the control of retrieval: whatever a model gains with these memories, it owes to no similarity.
        """
        self._require(k)
        generator = np.random.default_rng(seed)
        found = np.full((len(queries), k), -1, dtype=np.int64)
        for start in range(0, len(queries), _CHUNK):
            part = queries[start : start + _CHUNK]
            ids = generator.integers(0, len(self), (len(part), 2 * k + 16))
            found[start : start + _CHUNK] = first_allowed(ids, self.allowed(part, ids), k)[0]
        return found

    def suitable_items(
        self, queries: Queries, item_embeddings: Float32Array, k: int, report: ReportProgress = quiet
    ) -> IntArray:
        """(Q, k) ids of the k allowed memories whose next items suit each query best; -1 if there are fewer.

        Memories are ordered by the cosine between the query and the embedding of their next item. Memories with the
        same next item are ordered by the similarity of their representations to the query. ``report`` is told how many
        queries are answered.
        """
        self._require(k)
        answered = _Answered(len(queries), report)
        by_item, items, first, counts, directions = self._sorted_by_item()
        search = faiss.IndexFlatIP(item_embeddings.shape[1])
        search.add(normalised(item_embeddings[items]))
        vectors = normalised(queries.vectors)
        found = np.full((len(queries), k), -1, dtype=np.int64)
        pending, depth = np.arange(len(queries)), k + 16
        while len(pending):
            short = []
            step = max(1, _CANDIDATES // (depth + int(counts.max())))  # all memories of a row's last item are taken
            for start in range(0, len(pending), step):
                rows = pending[start : start + step]
                _, nearest = search.search(vectors[rows], min(depth, len(items)))
                # Items in order until they hold `depth` memories; every item holds at least one.
                held = counts[nearest]
                row, rank = np.nonzero(held.cumsum(1) - held < depth)
                item = nearest[row, rank]
                ids = by_item[ranges(first[item], counts[item])]
                row, rank = np.repeat(row, counts[item]), np.repeat(rank, counts[item])
                ok = self.allowed(queries[rows[row]], ids[:, None])[:, 0]
                row, rank, ids = row[ok], rank[ok], ids[ok]
                similarity = np.einsum("nd,nd->n", directions[ids], vectors[rows[row]])
                order = np.lexsort((-similarity, rank, row))
                row, ids = row[order], ids[order]
                place = np.arange(len(row)) - np.searchsorted(row, row)
                found[rows] = -1
                found[rows[row[place < k]], place[place < k]] = ids[place < k]
                lacking = rows[np.bincount(row, minlength=len(rows)) < k]
                if depth >= len(self):  # all memories have been looked at
                    lacking = lacking[:0]
                short.append(lacking)
                answered.add(len(rows) - len(lacking))
            pending = np.concatenate(short)
            depth *= 4
        answered.end()
        return found

    def recall(self, queries: Queries, k: int) -> float:
        """Share of the exact k most similar allowed memories that the index finds. Ties in similarity are tolerated."""
        flat = faiss.IndexFlatIP(self.representations.shape[1])
        flat.add(normalised(self.representations))
        settings = self.settings.model_copy(update={"index": "flat"})
        exact = replace(self, settings=settings, index=flat, _gpu_index=None)
        directions, vectors = normalised(self.representations), normalised(queries.vectors)
        wanted, got = exact.similar_users(queries, k), self.similar_users(queries, k)
        threshold = np.where(wanted >= 0, np.einsum("qkd,qd->qk", directions[wanted], vectors), np.inf).min(1)
        similarity = np.where(got >= 0, np.einsum("qkd,qd->qk", directions[got], vectors), -np.inf)
        hits = (similarity >= threshold[:, None] - 1e-6).sum()
        return float(hits / max((wanted >= 0).sum(), 1))

    def save(self, folder: Path) -> None:
        """Write arrays as .npy, the index in Faiss's format, and settings and encoder fingerprint as JSON."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        faiss.write_index(self.index, str(folder / "index.faiss"))
        settings = self.settings.model_dump(exclude={"minimum_recall"})  # it belongs to the check, not to the bank
        record = {"encoder": self.encoder, "memories": len(self), "settings": settings}
        (folder / "bank.json").write_text(json.dumps(record, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        record = json.loads((folder / "bank.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy") for name in _ARRAYS}
        index = faiss.read_index(str(folder / "index.faiss"))
        return cls(**arrays, encoder=record["encoder"], settings=MemorySettings(**record["settings"]), index=index)

    def _sorted_by_item(self) -> tuple[IntArray, IntArray, IntArray, IntArray, Float32Array]:
        """Memories grouped by next item, kept until memories are added, as online queries come one by one.

        Returns memory ids in order of their next items; these items, the place of each item's first memory and the
        number of its memories; and the normalised representations.
        """
        if self._by_item is None:
            order = np.argsort(self.targets, kind="stable")
            groups = np.unique(self.targets[order], return_index=True, return_counts=True)
            self._by_item = (order, *groups, normalised(self.representations))
        return self._by_item

    def _require(self, k: int) -> None:
        if k > len(self):
            raise InputError(f"memories = {k} exceeds the {len(self)} memories in the bank; lower it")

    def _searches(self, queries: Queries) -> Iterator[tuple[IntArray, Callable[[Float32Array, int], IntArray]]]:
        """Pairs (query rows, function (vectors, count) -> ids) that together answer all queries."""
        if not self.settings.time_cut:
            yield np.arange(len(queries)), self._search
            return
        if len(queries) == 0:
            return
        # With the time cut, queries of a period search only what was known at the end of the period.
        by_time = np.argsort(self.known_at, kind="stable")
        directions = normalised(self.representations[by_time])
        device = worker_device()
        on_gpu = ExactSearch(directions, device) if device.type == "cuda" else None
        for rows in np.array_split(np.argsort(queries.times, kind="stable"), min(64, len(queries))):
            known = int(np.searchsorted(self.known_at[by_time], queries.times[rows].max(), side="right"))
            if known:
                part = _FaissSearch(directions[:known]) if on_gpu is None else on_gpu.first(known)
                yield rows, partial(_named_search, part, names=by_time)

    def _search(self, queries: Float32Array, count: int) -> IntArray:
        """Ids of the ``count`` memories that the index finds for each query, whether allowed or not."""
        ids: IntArray = self._device_index(count).search(queries, count)[1]
        return ids

    def _device_index(self, count: int) -> Any:
        """The index, or a copy on a GPU if Faiss (or, for exact search, PyTorch) can search there."""
        by_faiss = can_use_gpu(self.settings, count)
        by_torch = self.settings.index == "flat" and worker_device().type == "cuda"
        if not (by_faiss or by_torch):
            return self.index
        made_by_faiss = not isinstance(self._gpu_index, ExactSearch)
        if self._gpu_index is None or self._gpu_index.ntotal != len(self) or made_by_faiss != by_faiss:
            self._gpu_index = (
                faiss.index_cpu_to_gpus_list(self.index, gpus=gpus_of_this_process())
                if by_faiss
                else ExactSearch(normalised(self.representations), worker_device())
            )
        return self._gpu_index


class _Answered:
    """Tells ``report`` how many of ``total`` queries are answered, in any case at the start and at the end."""

    def __init__(self, total: int, report: ReportProgress):
        self._done, self._total = 0, total
        self._report = partial(report, steps=total, unit="query")
        self._report(step=0, force=True)  # so that one can see what takes so long

    def add(self, answered: int) -> None:
        """Count more answered queries."""
        self._done += answered
        self._report(step=self._done)

    def end(self) -> None:
        """Count all as answered, including those for which there was nothing to search."""
        self._report(step=self._total, force=True)


def first_allowed(ids: IntArray, allowed: BoolArray, k: int) -> tuple[IntArray, IntArray]:
    """The first k allowed ids of each row, moved to the front, then -1; and how many there are, at most k."""
    place = allowed.cumsum(1) - 1
    take = allowed & (place < k)
    kept = np.full((len(ids), k), -1, dtype=np.int64)
    row, column = np.nonzero(take)
    kept[row, place[row, column]] = ids[row, column]
    return kept, take.sum(1)


@dataclass(frozen=True)
class _FaissSearch:
    """Exact search among vectors that are not in an index."""

    vectors: Float32Array

    def search(self, queries: Float32Array, count: int) -> tuple[Float32Array, IntArray]:
        """Search like a Faiss index."""
        found: tuple[Float32Array, IntArray] = faiss.knn(
            queries, self.vectors, count, metric=faiss.METRIC_INNER_PRODUCT
        )
        return found


def _named_search(vectors: ExactSearch | _FaissSearch, queries: Float32Array, count: int, names: IntArray) -> IntArray:
    """Exact search among ``vectors`` whose ids are ``names``."""
    rows = vectors.search(queries, count)[1]
    return np.where(rows >= 0, names[rows], -1)
