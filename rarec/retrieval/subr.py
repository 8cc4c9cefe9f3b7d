"""Semantic user behaviour retrieval (ReLLa, section 3.2): the behaviours of a user that are most similar to the target.

For a target at position ``p``, the candidates are the same user's positions before ``p``. Of these, the K behaviours
whose item vectors have the largest inner product with the target's are kept, the latest ones among ties, in
chronological order. A kept behaviour is stored as its distance: the number of positions before the target.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarec.data.sequences import user_at
from rarec.types import BoolArray, Distances, Float32Array, IntArray

# A user's targets are handled in blocks: small enough for memory, and so small that few targets are compared with
# behaviours that came after them.
_BLOCK_ELEMENTS = 1_000_000
_BLOCK_TARGETS = 128


def retrieve_behaviours(
    vectors: Float32Array, items: IntArray, offsets: IntArray, position: IntArray, k: int, out: Distances | None = None
) -> Distances:
    """(N, k) distances of the kept behaviours, largest (oldest) first.

    A history of fewer than k behaviours is kept whole, after zeros. The work is a few block products per user. Apart
    from an order of the targets, memory is bounded by a block and the vectors of the longest history, however large N
    is.

    Args:
        vectors: (I, D) L2-normalised item vectors.
        items: (M,) item of each interaction, sorted by (user, time).
        offsets: (U + 1,) where each user's interactions begin.
        position: (N,) targets, in any order.
        k: Number of behaviours to keep.
        out: (N, k) integers to fill, such as a memory-mapped file; by default a new array.
    """
    out = np.zeros((len(position), k), dtype=distance_type(offsets)) if out is None else out
    distinct = same_vector(vectors)
    table = torch.from_numpy(vectors)
    order = np.argsort(position, kind="stable")
    for rows, start in _users(position[order], offsets):
        samples = order[rows]
        lengths = position[samples] - start
        history = distinct[items[start : start + int(lengths[-1]) + 1]]
        own = table[torch.from_numpy(history)]  # (h, D) vectors of behaviours and targets
        # Equal items must get their similarity from the same product, or rounding would decide ties instead of recency.
        seen, first, again = np.unique(history, return_index=True, return_inverse=True)
        same = torch.from_numpy(first[again]) if len(seen) < len(history) else None
        for block in _blocks(lengths):
            width = int(lengths[block.stop - 1])
            similar = own[torch.from_numpy(lengths[block])] @ own[:width].T  # (n, width)
            if same is not None:
                similar = similar[:, same[:width]]
            kept = most_similar(similar, torch.from_numpy(lengths[block]), k)
            write_distances(out, samples[block], kept.numpy(), lengths[block])
    return out


def recent_behaviours(offsets: IntArray, position: IntArray, k: int, out: Distances | None = None) -> Distances:
    """(N, k) distances of the k latest behaviours before each target; see `retrieve_behaviours`."""
    out = np.zeros((len(position), k), dtype=distance_type(offsets)) if out is None else out
    distance = np.arange(k, 0, -1)
    block = max(1, _BLOCK_ELEMENTS // k)
    for first in range(0, len(position), block):
        targets = position[first : first + block]
        start = offsets[user_at(offsets, targets)]
        out[first : first + block] = np.where(distance <= (targets - start)[:, None], distance, 0)
    return out


def distance_type(offsets: IntArray) -> type[np.integer[Any]]:
    """The smallest type that holds all distances within users' histories."""
    longest = int(np.diff(offsets).max(initial=0))
    return np.uint16 if longest <= np.iinfo(np.uint16).max else np.int32


def same_vector(vectors: Float32Array) -> IntArray:
    """(I,) the first item that has the same vector as each item."""
    raw = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * vectors.itemsize)))[:, 0]
    _, first, group = np.unique(raw, return_index=True, return_inverse=True)
    return first[group]


def most_similar(similar: Tensor, lengths: Tensor, k: int) -> Tensor:
    """(n, h) bool: the k largest of the first ``lengths`` (n,) columns of ``similar`` (n, h), the last among ties."""
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
    """For each user with targets, which are ascending: the rows of the targets, and the user's first position."""
    bounds = np.searchsorted(position, offsets)
    for user in np.flatnonzero(np.diff(bounds)).tolist():
        yield slice(int(bounds[user]), int(bounds[user + 1])), int(offsets[user])


def _blocks(lengths: IntArray) -> Iterator[slice]:
    """Blocks of a user's targets, the lengths of whose histories ascend."""
    # As many rows as fit with the longest history; in the worst case one.
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
