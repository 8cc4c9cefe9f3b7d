"""Windows of many lengths packed into one token axis, so that no layer works on padding.

Shape letters used in this package: T tokens of a packed batch, Q rows its final layer computes, M wanted
representations, D width, H heads, I items, n windows of a bucket, l their padded length.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rarec.data.sequences import IntArray, UserSequences, Windows, ranges

# Windows are padded to the next of these lengths: few distinct lengths (one attention call each) for little padding.
_LADDER = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40])
_STEP = 10


@dataclass(frozen=True)
class Bucket:
    """Neighbouring windows of one padded length: ``full`` ones, then ``lone`` ones of which one position is wanted."""

    length: int
    full: int
    lone: int


@dataclass(frozen=True)
class PackedWindows:
    """A batch for a sequence encoder.

    Attributes:
        items: (T,) item indices; padding tokens hold item 0. They stand behind the real tokens of their window, so
            under causal attention no real token sees them.
        positions: (T,) place of each token in its window.
        lengths: (n,) real length of every window, in the order of the token axis.
        buckets: windows grouped by padded length, in the order of the token axis.
        query_rows: (Q,) tokens that the final layer computes: all tokens of full windows, one of each lone window.
        outputs: (M,) row of `query_rows` that holds each wanted representation, in the order of `Windows.prefixes`.
    """

    items: Tensor
    positions: Tensor
    lengths: Tensor
    buckets: tuple[Bucket, ...]
    query_rows: Tensor
    outputs: Tensor

    def to(self, device: torch.device) -> "PackedWindows":
        """The same batch on ``device``."""
        return PackedWindows(
            self.items.to(device),
            self.positions.to(device),
            self.lengths.to(device),
            self.buckets,
            self.query_rows.to(device),
            self.outputs.to(device),
        )


def padded_lengths(lengths: IntArray) -> IntArray:
    """Length to which each window is padded."""
    rung = np.searchsorted(_LADDER, lengths)
    return np.where(rung < len(_LADDER), _LADDER[np.minimum(rung, len(_LADDER) - 1)], -(-lengths // _STEP) * _STEP)


def pack(sequences: UserSequences, windows: Windows, closing_item: int | None = None) -> PackedWindows:
    """Lay ``windows`` out on one token axis, sorted by padded length.

    With ``closing_item``, windows must yield one prefix each; a token of that item is put behind every window, and its
    representation is the prefix's (the mask token of BERT4Rec).
    """
    if closing_item is not None:
        windows = Windows(windows.start, windows.length + 1, windows.outputs)
    lone = (windows.outputs == 1) & (windows.length > 1)
    order = np.lexsort((lone, padded_lengths(windows.length)))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    start, length, outputs, lone = windows.start[order], windows.length[order], windows.outputs[order], lone[order]
    padded = padded_lengths(length)

    place = ranges(np.zeros_like(padded), padded)
    real = place < np.repeat(length, padded)
    closing = place == np.repeat(length, padded) - 1 if closing_item is not None else np.zeros_like(real)
    source = np.where(real & ~closing, np.repeat(start, padded) + place, 0)
    items = np.where(real, sequences.items[source], 0)
    items[closing] = closing_item or 0

    # Rows of the final layer: where each window's begin, which tokens they are, and which of them are wanted.
    rows = np.where(lone, 1, padded)
    first_row = np.cumsum(rows) - rows
    first_token = np.cumsum(padded) - padded
    query_rows = ranges(np.where(lone, first_token + length - 1, first_token), rows)
    first_output = np.where(lone, first_row, first_row + length - outputs)

    sizes, first = np.unique(padded, return_index=True)
    counts = np.diff(np.append(first, len(padded)))
    lone_counts = np.add.reduceat(lone, first, dtype=np.int64) if len(first) else first
    return PackedWindows(
        items=torch.from_numpy(items),
        positions=torch.from_numpy(np.where(real, place, 0)),
        lengths=torch.from_numpy(length),
        buckets=tuple(
            Bucket(int(size), int(count - few), int(few))
            for size, count, few in zip(sizes, counts, lone_counts, strict=True)
        ),
        query_rows=torch.from_numpy(query_rows),
        outputs=torch.from_numpy(ranges(first_output[back], windows.outputs)),
    )
