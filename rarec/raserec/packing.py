"""Packing windows of different lengths into one batch with hardly any padding.

Transformers read `PackedRows`: windows side by side in rows of equal length, each token seeing only its own window. The
recurrent encoder reads `PackedSteps`: the first items of all windows, then the second ones, and so on.

Shape letters in this package: R rows of l places, T = R·l tokens, M wanted representations, D width, H heads, I items,
W windows.
"""

import bisect
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rarec.data.sequences import UserSequences, Windows, ranges
from rarec.training.device import on_device
from rarec.types import IntArray

_SHORTEST_ROW = 32  # shorter rows would mean many small products


@dataclass(frozen=True)
class PackedRows:
    """A batch for a transformer.

    Attributes:
        items: (R, l) item indices; padding holds item 0.
        positions: (R, l) place of each token in its window.
        first, last: (R, l) first and last place of the row that a token may see; padding sees only itself.
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
        items: (T,) items of the windows, step by step, the longest window first; no padding.
        windows: (l,) int64 on the CPU: the number of windows that have each step.
        outputs: (M,) token of each wanted representation, in the order of `Windows.prefixes`.
    """

    items: Tensor
    windows: Tensor
    outputs: Tensor

    def to(self, device: torch.device) -> "PackedSteps":
        """The same batch on ``device``. The counts stay on the CPU, where PyTorch needs them."""
        return PackedSteps(on_device(self.items, device), self.windows, on_device(self.outputs, device))


def pack_rows(
    sequences: UserSequences, windows: Windows, causal: bool = True, closing_item: int | None = None
) -> PackedRows:
    """Lay ``windows`` side by side in rows.

    Args:
        causal: Whether a token sees no later ones of its window.
        closing_item: Item to append to every window, whose representation is that of the prefix (BERT4Rec's mask
            token). Each window must then yield one prefix.
    """
    closing = int(closing_item is not None)
    lengths = windows.length + closing
    width = max(int(lengths.max(initial=0)), _SHORTEST_ROW)
    row, place, rows = fill_rows(lengths, width)

    token = row * width + place  # (W,) token of each window's first item
    at = ranges(token, lengths)  # the tokens of all windows
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
    """Pack pieces of these ``lengths`` into rows of ``width``: row and first place of each, and the number of rows.

    Each row takes the longest piece that still fits, until none does. A few per cent of the places stay empty.
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
    """Arrange ``windows`` step by step, the longest first."""
    order = np.argsort(-windows.length, kind="stable")
    length = windows.length[order]
    longest = int(length.max(initial=0))
    alive = np.searchsorted(-length, -np.arange(longest), side="left")  # (l,) number of windows that have each step
    before = np.cumsum(alive) - alive
    step = np.repeat(np.arange(longest), alive)
    items = sequences.items[windows.start[order][ranges(np.zeros_like(alive), alive)] + step]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    wanted = ranges(windows.length - windows.outputs, windows.outputs)
    outputs = before[wanted] + np.repeat(rank, windows.outputs)
    return PackedSteps(torch.from_numpy(items), torch.from_numpy(alive), torch.from_numpy(outputs))
