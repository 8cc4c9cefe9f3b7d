"""Windows of many lengths laid out as one batch, so that hardly any work is done on padding.

Transformers read `PackedRows`: windows side by side in rows of one length, each token seeing its own window only. The
recurrent encoder reads `PackedSteps`: all windows' first items, then all second items, and so on.

Shape letters used in this package: R rows of l places, T = R·l tokens, M wanted representations, D width, H heads,
I items, W windows.
"""

import bisect
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rarec.data.sequences import UserSequences, Windows, ranges
from rarec.training.device import on_device
from rarec.types import IntArray

_SHORTEST_ROW = 32  # shorter rows would make many small products


@dataclass(frozen=True)
class PackedRows:
    """A batch for a transformer.

    Attributes:
        items: (R, l) item indices; padding holds item 0.
        positions: (R, l) place of each token in its window.
        first, last: (R, l) the places of its row that a token may see; padding sees itself only.
        outputs: (M,) token (row · l + place) of each wanted representation, in the order of `Windows.prefixes`.
    """

    items: Tensor
    positions: Tensor
    first: Tensor
    last: Tensor
    outputs: Tensor

    def to(self, device: torch.device) -> "PackedRows":
        """The same batch on ``device``."""
        return PackedRows(
            *(on_device(part, device) for part in (self.items, self.positions, self.first, self.last, self.outputs))
        )


@dataclass(frozen=True)
class PackedSteps:
    """A batch for a recurrent encoder.

    Attributes:
        items: (T,) the windows' items, longest window first, step by step: no padding.
        windows: (l,) CPU int64, how many windows are at least so long.
        outputs: (M,) token of each wanted representation, in the order of `Windows.prefixes`.
    """

    items: Tensor
    windows: Tensor
    outputs: Tensor

    def to(self, device: torch.device) -> "PackedSteps":
        """The same batch on ``device``; the counts stay, since PyTorch wants them on the CPU."""
        return PackedSteps(on_device(self.items, device), self.windows, on_device(self.outputs, device))


def pack_rows(
    sequences: UserSequences, windows: Windows, causal: bool = True, closing_item: int | None = None
) -> PackedRows:
    """Lay ``windows`` side by side in rows; under ``causal`` a token sees no later one of its window.

    With ``closing_item``, windows must yield one prefix each; a token of that item is put behind every window, and its
    representation is the prefix's (the mask token of BERT4Rec).
    """
    closing = int(closing_item is not None)
    lengths = windows.length + closing
    width = max(int(lengths.max(initial=0)), _SHORTEST_ROW)
    row, place, rows = fill_rows(lengths, width)

    token = row * width + place  # of each window's first item
    at = ranges(token, lengths)
    start, end = np.repeat(place, lengths), np.repeat(place + lengths - 1, lengths)
    own = np.tile(np.arange(width), rows)
    items, positions, first, last = np.zeros_like(own), np.zeros_like(own), own.copy(), own.copy()
    positions[at] = own[at] - start
    first[at] = start
    if not causal:
        last[at] = end
    items[ranges(token, windows.length)] = sequences.items[ranges(windows.start, windows.length)]
    if closing_item is not None:
        items[token + lengths - 1] = closing_item
    outputs = ranges(token + lengths - windows.outputs, windows.outputs)
    items, positions, first, last = (part.reshape(rows, width) for part in (items, positions, first, last))
    return PackedRows(*map(torch.from_numpy, (items, positions, first, last, outputs)))


def fill_rows(lengths: IntArray, width: int) -> tuple[IntArray, IntArray, int]:
    """Row and first place of pieces of these ``lengths``, and the number of rows of ``width`` that they fill.

    Each row takes the longest piece that still fits, again and again, which leaves a few per cent of the places empty.
    """
    sizes, counts = (part.tolist() for part in np.unique(lengths, return_counts=True))
    groups = []  # (size, pieces, row, first place) of equal pieces side by side
    rows = 0
    while sizes:
        free = width
        while at := bisect.bisect_right(sizes, free):
            size = sizes[at - 1]
            pieces = min(counts[at - 1], free // size)
            groups.append((size, pieces, rows, width - free))
            free -= pieces * size
            counts[at - 1] -= pieces
            if not counts[at - 1]:
                del sizes[at - 1], counts[at - 1]
        rows += 1
    size, pieces, row, place = np.array(groups, dtype=np.int64).reshape(-1, 4).T
    by_size = np.argsort(size, kind="stable")
    size, pieces, row, place = size[by_size], pieces[by_size], row[by_size], place[by_size]
    order = np.argsort(lengths, kind="stable")
    row_of, place_of = np.empty_like(lengths), np.empty_like(lengths)
    row_of[order] = np.repeat(row, pieces)
    place_of[order] = np.repeat(place, pieces) + ranges(np.zeros_like(pieces), pieces) * np.repeat(size, pieces)
    return row_of, place_of, rows


def pack_steps(sequences: UserSequences, windows: Windows) -> PackedSteps:
    """Lay ``windows`` out step by step, longest first."""
    order = np.argsort(-windows.length, kind="stable")
    length = windows.length[order]
    longest = int(length.max(initial=0))
    alive = np.searchsorted(-length, -np.arange(longest), side="left")  # windows longer than each step
    before = np.cumsum(alive) - alive
    step = np.repeat(np.arange(longest), alive)
    items = sequences.items[windows.start[order][ranges(np.zeros_like(alive), alive)] + step]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    wanted = ranges(windows.length - windows.outputs, windows.outputs)
    outputs = before[wanted] + np.repeat(rank, windows.outputs)
    return PackedSteps(torch.from_numpy(items), torch.from_numpy(alive), torch.from_numpy(outputs))
