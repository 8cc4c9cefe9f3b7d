"""Semantic user behaviour retrieval (ReLLa, section 3.2): the behaviours of a user that are most similar to the target.

For a sample whose target stands at position ``p``, the candidates are the same user's positions before ``p``. The K
whose item vectors have the greatest inner product with the target's are kept, among equal ones the latest, in
chronological order. What is stored of a kept behaviour is how many positions before the target it stands.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarec.data.sequences import user_at
from rarec.types import BoolArray, Distances, Float32Array, IntArray

# A user is handled some targets at a time: few enough for memory, and so few that hardly any of a block's targets is
# compared with behaviours that came after it.
_BLOCK_ELEMENTS = 1_000_000
_BLOCK_TARGETS = 128


def retrieve_behaviours(
    vectors: Float32Array, items: IntArray, offsets: IntArray, position: IntArray, k: int, out: Distances | None = None
) -> Distances:
    """(N, k) distances of the kept behaviours from their target, greatest (oldest) first.

    A history of fewer than k is kept whole, behind zeros. The cost is some block products a user. Beside an order of
    the targets, memory is bounded by a block and the vectors of the longest history, whatever N is.

    Args:
        vectors: (I, D) L2-normalised item vectors.
        items: (M,) item of each interaction, sorted by (user, time).
        offsets: (U + 1,) where each user's interactions begin.
        position: (N,) targets, in any order.
        k: behaviours kept.
        out: (N, k) integers to fill, for example a memory-mapped file; made here if None.
    """
    out = np.zeros((len(position), k), dtype=distance_type(offsets)) if out is None else out
    distinct = same_vector(vectors)
    table = torch.from_numpy(vectors)
    order = np.argsort(position, kind="stable")
    for rows, start in _users(position[order], offsets):
        samples = order[rows]
        lengths = position[samples] - start
        history = distinct[items[start : start + int(lengths[-1]) + 1]]
        own = table[torch.from_numpy(history)]  # of behaviours and targets
        # Equal items get their similarity from the same product, or rounding would decide ties in place of recency.
        seen, first, again = np.unique(history, return_index=True, return_inverse=True)
        same = torch.from_numpy(first[again]) if len(seen) < len(history) else None
        for block in _blocks(lengths):
            width = int(lengths[block.stop - 1])
            similar = own[torch.from_numpy(lengths[block])] @ own[:width].T
            if same is not None:
                similar = similar[:, same[:width]]
            kept = most_similar(similar, torch.from_numpy(lengths[block]), k)
            write_distances(out, samples[block], kept.numpy(), lengths[block])
    return out


def recent_behaviours(offsets: IntArray, position: IntArray, k: int, out: Distances | None = None) -> Distances:
    """(N, k) distances of the k latest behaviours before each target, in the form of `retrieve_behaviours`."""
    out = np.zeros((len(position), k), dtype=distance_type(offsets)) if out is None else out
    distance = np.arange(k, 0, -1)
    block = max(1, _BLOCK_ELEMENTS // k)
    for first in range(0, len(position), block):
        targets = position[first : first + block]
        start = offsets[user_at(offsets, targets)]
        out[first : first + block] = np.where(distance <= (targets - start)[:, None], distance, 0)
    return out


def distance_type(offsets: IntArray) -> type[np.integer[Any]]:
    """The narrowest type that holds the distances inside every user's history."""
    longest = int(np.diff(offsets).max(initial=0))
    return np.uint16 if longest <= np.iinfo(np.uint16).max else np.int32


def same_vector(vectors: Float32Array) -> IntArray:
    """(I,) the first item with the same vector as each item."""
    raw = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * vectors.itemsize)))[:, 0]
    _, first, group = np.unique(raw, return_index=True, return_inverse=True)
    return first[group]


def most_similar(similar: Tensor, lengths: Tensor, k: int) -> Tensor:
    """(n, h) bool: the k greatest of the first ``lengths`` (n,) columns of ``similar`` (n, h), the last of equals."""
    known = torch.arange(similar.shape[1]) < lengths[:, None]
    if similar.shape[1] <= k:
        return known
    similar = similar.masked_fill(~known, -torch.inf)
    # NumPy's selection is several times faster than `topk`.
    place = similar.shape[1] - k
    threshold = torch.from_numpy(np.partition(similar.numpy(), place, axis=1)[:, place : place + 1])
    kept = (similar >= threshold) & known
    surplus = kept.sum(1) - k
    crowded = torch.nonzero(surplus > 0)[:, 0]
    if len(crowded):
        tied = kept[crowded] & (similar[crowded] == threshold[crowded])
        kept[crowded] &= ~(tied & (tied.cumsum(1) <= surplus[crowded, None]))
    return kept


def _users(position: IntArray, offsets: IntArray) -> Iterator[tuple[slice, int]]:
    """The rows of each user's ascending targets, and the first position of the user."""
    bounds = np.searchsorted(position, offsets)
    for user in np.flatnonzero(np.diff(bounds)).tolist():
        yield slice(int(bounds[user]), int(bounds[user + 1])), int(offsets[user])


def _blocks(lengths: IntArray) -> Iterator[slice]:
    """Blocks of a user's targets, whose histories' lengths ascend."""
    # As many rows as fit beside the longest history; that one alone in the worst case.
    step = max(1, min(_BLOCK_TARGETS, _BLOCK_ELEMENTS // max(1, int(lengths[-1]))))
    for first in range(0, len(lengths), step):
        yield slice(first, min(first + step, len(lengths)))


def write_distances(out: Distances, samples: IntArray, kept: BoolArray, lengths: IntArray) -> None:
    """Put the distances of the kept columns at the end of each sample's row."""
    row, column = np.divmod(np.flatnonzero(kept), kept.shape[1])  # faster than `nonzero` of a matrix
    count = kept.sum(1)
    place = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
    place += np.repeat(out.shape[1] - count, count)
    out[samples[row], place] = lengths[row] - column
