"""The rows of one published file, as text, in DuckDB: what every reader returns and every format starts from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarec.types import IntArray

PIECE = 64 << 20  # bytes
# Columns of a converted table that no file can have: the number of its file from 0, and of the row in it.
FILE, N = '"#file"', '"#n"'
HIDDEN = ("#file", "#n")
UNNAMED = "unnamed "  # and its place from 1: what a column without a name is called
NOT_UTF8 = "not valid utf-8"  # why a row is bad


@dataclass(frozen=True)
class Rows:
    """Rows of one file.

    Attributes:
        file: Name of the file.
        table: DuckDB table with `n` (BIGINT, from 0 in file order) and a VARCHAR column `c<place>` for each name: names
            in files may differ in case only, or not at all.
        names: Published column names, in file order.
        types: DuckDB type of each column in the file; "VARCHAR" for text.
        total: Rows of the file, including unreadable ones.
        bad: (line, reason, text) of each row that has no place in the table.
        unseen: Number of further such rows, if there are too many to be of use.
        lines: (N,) `n` -> (N,) line from 1. In parquet and in a JSON array, a line is a row.
        texts: (N,) lines -> the text of each, as far as it is needed to show it.
        split: How an error introduces the names.
    """

    file: str
    table: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    total: int
    bad: list[tuple[int, str, str]]
    lines: Callable[[IntArray], IntArray]
    texts: Callable[[IntArray], list[str]]
    split: str = "it has"
    unseen: int = 0

    def column(self, name: str) -> str:
        """Column of the table that holds `name`."""
        return f"c{self.names.index(name)}"


def pieces(path: Path) -> Iterator[tuple[int, bytes, IntArray]]:
    """Whole lines: number of the first one from 1, their bytes, and (l + 1,) places of line ends from -1 on."""
    number = 1
    with path.open("rb") as stream:
        held = b""
        while True:
            piece = stream.read(PIECE)
            block = held + piece
            cut = block.rfind(b"\n") + 1 if piece else len(block)
            block, held = block[:cut], block[cut:]
            if block:
                if not block.endswith(b"\n"):
                    block += b"\n"
                ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                yield number, block, np.concatenate([[-1], ends])
                number += len(ends)
            if not piece:
                return


def blank_lines(path: Path) -> IntArray:
    """Numbers from 1 of the lines without any text, of a file without compression."""
    found = [np.empty(0, np.int64)]
    for first, piece, ends in pieces(path):
        lengths = ends[1:] - ends[:-1]
        text = np.frombuffer(piece, dtype=np.uint8)
        found.append(first + np.flatnonzero((lengths == 1) | ((lengths == 2) & (text[ends[1:] - 1] == ord("\r")))))
    return np.concatenate(found)


def line_texts(path: Path, wanted: IntArray) -> list[str]:
    """The text of each line of a file without compression; `wanted` counts from 1, in ascending order."""
    found = []
    for first, piece, ends in pieces(path):
        here = wanted[(wanted >= first) & (wanted < first + len(ends) - 1)] - first
        found += [piece[ends[line] + 1 : ends[line + 1]].decode(errors="replace").rstrip("\r") for line in here]
    return found
