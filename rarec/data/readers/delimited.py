"""Reading delimited text in blocks: bounded memory, exact line numbers, bad rows quarantined.

A block of complete lines goes through pyarrow's CSV parser. If pyarrow may have lost track of lines (an open quote, a
lone carriage return, bytes that are not UTF-8), the block is read again line by line, slowly, to find each bad line.
Lines that a quoted value spans are one row, numbered by the first line. A quote that is never closed spoils only its
own line.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from rarec.data.columns import Column
from rarec.data.quarantine import Quarantine
from rarec.data.sources.files import count_lines
from rarec.errors import InputError

BLOCK = 16 << 20  # bytes; large enough for vectorised work, small compared with the data
STAND_IN = b"\x1f"  # ASCII unit separator, in place of `::`: pyarrow takes only one-byte delimiters
ROWS_WITHIN = 3  # a value of this many complete rows and nothing else means that a quote was left open
UTF8_MARK = b"\xef\xbb\xbf"
MakeColumn = Callable[[str], Column]
# Strings of each column, the line (from 0) of each row, and (line, reason) of each line with a wrong shape.
Rows = tuple[list[pa.Array], np.ndarray, list[tuple[int, str]]]


@dataclass(frozen=True)
class Layout:
    """How a delimited text file is written.

    Attributes:
        delimiter: Text between two values.
        names: Published column names, in order; None if they are in the first line.
        encoding: "utf-8" or "latin-1".
        quoted: Whether values may be in double quotes.
        escape: Character that escapes a quote inside a quoted value, apart from doubling it.
    """

    delimiter: str
    names: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quoted: bool = False
    escape: str | None = None


def read_delimited(
    path: Path,
    layout: Layout,
    rename: Mapping[str, str],
    required: tuple[str, ...],
    make_column: MakeColumn,
    quarantine: Quarantine,
    block_size: int = BLOCK,
) -> pd.DataFrame:
    """Table of the file's readable rows, in file order. See `read_columns`; a file without rows is also an error."""
    columns = read_columns(path, layout, rename, required, make_column, quarantine, block_size)
    table = pd.DataFrame({name: column.finish() for name, column in columns.items()})
    if not len(table):
        raise InputError(f"{path.name}: the file holds no rows; get a complete copy of it.")
    return table


def read_columns(
    path: Path,
    layout: Layout,
    rename: Mapping[str, str],
    required: tuple[str, ...],
    make_column: MakeColumn,
    quarantine: Quarantine,
    block_size: int = BLOCK,
    kept_lines: list[np.ndarray] | None = None,
) -> dict[str, Column]:
    """Columns of the file's readable rows, in file order, ready to be finished.

    Args:
        path: The file.
        layout: How it is written.
        rename: Published column name -> ours; other columns keep their names.
        required: Our names of columns that must be there.
        make_column: Returns a builder for a column, by our name.
        quarantine: Receives the unreadable rows.
        block_size: Bytes parsed at a time.
        kept_lines: Receives the line numbers of the readable rows, block by block.

    Raises:
        InputError: A required column is missing, the text is UTF-8 but the layout says latin-1, or too many rows are
            unreadable.
    """
    total, kept = count_lines(path), 0
    with path.open("rb") as stream:
        if stream.read(len(UTF8_MARK)) != UTF8_MARK:
            stream.seek(0)
        published, line = layout.names, 1
        if published is None:
            published, line = _header(stream.readline(), layout), 2
            total -= 1
        names = _our_names(path, published, rename, required, layout)
        columns = [make_column(name) for name in names]
        utf8 = _Utf8Suspicion() if layout.encoding == "latin-1" else None
        for block, (strings, lines, failures) in _parsed(stream, block_size, list(published), layout):
            if utf8:
                utf8.look(block)
            text = _line_texts(block, layout)
            for number, reason in failures:
                quarantine.add(path.name, line + number, reason, text(number))
            bad = np.zeros(len(lines), dtype=bool)
            for column, values in zip(columns, strings, strict=True):
                found = column.parse(values) & ~bad
                for row in np.flatnonzero(found):
                    number = int(lines[row])
                    reason = column.reason(values[row].as_py())
                    quarantine.add(path.name, line + number, reason, text(number))
                bad |= found
            for column in columns:
                column.keep(~bad if bad.any() else None)
            if kept_lines is not None:
                kept_lines.append(line + lines[~bad])
            kept += int((~bad).sum())
            line += _count(block)
            # Checked after each block, so that an unreadable file is not collected line by line.
            quarantine.check(path.name, total)
    if utf8 and utf8.confirmed:
        raise InputError(
            f"{path.name}: the text is UTF-8, but this format is read as latin-1, which would garble accented letters. "
            f"Use the file as published, convert it (iconv -f UTF-8 -t LATIN1 {path.name}), or set `encoding` to utf-8 "
            "if it is a recbole source."
        )
    quarantine.check(path.name, kept + quarantine.count(path.name))
    return dict(zip(names, columns, strict=True))


def _our_names(
    path: Path, published: tuple[str, ...], rename: Mapping[str, str], required: tuple[str, ...], layout: Layout
) -> list[str]:
    for name in rename:
        if name not in published and layout.names is None:
            raise InputError(_missing(path, name, published, layout))
    names = [rename.get(name, name) for name in published]
    for name in required:
        if name not in names:
            raise InputError(_missing(path, name, published, layout))
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InputError(f"{path.name}: two columns have the name {sorted(repeated)[0]!r}; correct the column mapping.")
    return names


def _missing(path: Path, name: str, published: tuple[str, ...], layout: Layout) -> str:
    found = ", ".join(repr(column) for column in published)
    return (
        f"{path.name}: the first line has no column {name!r}; split at {layout.delimiter!r}, it has {found}. Check the "
        "file's delimiter, encoding and header, and the data set's column mapping if it has one."
    )


def _header(line: bytes, layout: Layout) -> tuple[str, ...]:
    text = line.decode(layout.encoding, errors="replace").rstrip("\r\n")
    return (
        tuple(next(csv.reader([text], delimiter=layout.delimiter), []))
        if layout.quoted
        else tuple(text.split(layout.delimiter))
    )


def _blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """Blocks of complete lines."""
    held: list[bytes] = []
    while chunk := stream.read(size):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield b"".join([*held, chunk[:cut]])
            held = []
        if chunk[cut:]:
            held.append(chunk[cut:])
    if held:
        yield b"".join(held)


class _Utf8Suspicion:
    """Whether a file that is read as latin-1 is really UTF-8.

    All bytes are valid latin-1. If a whole file is valid UTF-8, too, that is no coincidence, unless it has only one
    character beyond ASCII.
    """

    def __init__(self) -> None:
        self._accents = 0
        self._valid = True

    def look(self, block: bytes) -> None:
        """Look at a block of complete lines."""
        if self._valid and not block.isascii():
            try:
                self._accents += sum(not character.isascii() for character in block.decode("utf-8"))
            except UnicodeDecodeError:
                self._valid = False

    @property
    def confirmed(self) -> bool:
        """Whether everything so far is UTF-8, with at least two characters beyond ASCII."""
        return self._valid and self._accents >= 2


def _count(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _line_texts(block: bytes, layout: Layout) -> Callable[[int], str]:
    """A function that returns line `number` (from 0) of the block as text. It splits the block on its first call."""
    lines: list[bytes] = []

    def text(number: int) -> str:
        if not lines:
            lines.extend(block.split(b"\n"))
        return lines[number].decode(layout.encoding, errors="replace").rstrip("\r")

    return text


def _parsed(stream: BinaryIO, size: int, names: list[str], layout: Layout) -> Iterator[tuple[bytes, Rows]]:
    """Blocks of complete lines and their rows. Lines of a value that is still open begin the next block."""
    rest = b""
    for chunk in _blocks(stream, size):
        block = rest + chunk
        rows, rest = _parse(block, names, layout)
        if len(rest) < len(block):
            yield block[: len(block) - len(rest)], rows
    if rest:
        yield rest, _parse_slowly(rest, names, layout, last=True)[0]


def _parse(block: bytes, names: list[str], layout: Layout) -> tuple[Rows, bytes]:
    """The rows of the block, and the lines at its end that belong to a value that is still open."""
    fast = _parse_fast(block, names, layout)
    return _parse_slowly(block, names, layout, last=False) if fast is None else (fast, b"")


def _parse_fast(block: bytes, names: list[str], layout: Layout) -> Rows | None:
    """Like `_parse`; None if rows and lines may differ, or the text is not in its encoding."""
    if block.count(b"\r") != block.count(b"\r\n"):
        return None
    data, delimiter = block, layout.delimiter
    if layout.encoding != "utf-8" and not data.isascii():
        data = data.decode(layout.encoding).encode("utf-8")
    if len(delimiter) > 1:
        if STAND_IN in data:
            return None
        data, delimiter = data.replace(delimiter.encode(), STAND_IN), STAND_IN.decode()
    failures: list[tuple[int, str]] = []

    def set_aside(row: pacsv.InvalidRow) -> str:
        failures.append((row.number - 1, _wrong_width(row.actual_columns, row.expected_columns, layout)))
        return "skip"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            pacsv.ReadOptions(use_threads=False, column_names=names, block_size=len(data) + 1),
            pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if layout.quoted else False,
                escape_char=layout.escape or False,
                ignore_empty_lines=False,
                invalid_row_handler=set_aside,
            ),
            pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    lines = _count(block)
    if table.num_rows + len(failures) != lines:
        return None
    if layout.quoted:
        last_line = block[block.rfind(b"\n", 0, -1) + 1 :].removesuffix(b"\n")
        if b'"' in last_line and not _join([last_line], 0, len(names), layout)[1]:
            return None
    kept = np.ones(lines, dtype=bool)
    kept[[number for number, _ in failures]] = False
    return [column.combine_chunks() for column in table.columns], np.flatnonzero(kept), failures


def _parse_slowly(block: bytes, names: list[str], layout: Layout, last: bool) -> tuple[Rows, bytes]:
    """Like `_parse`, one line at a time. The `last` block leaves no lines over."""
    rows: list[list[str]] = []
    lines: list[int] = []
    failures: list[tuple[int, str]] = []
    texts = block.removesuffix(b"\n").split(b"\n")
    number, rest = 0, b""
    while number < len(texts):
        spanned, reason = 1, ""
        try:
            values = _split(_decode(texts[number], layout), layout)
        except csv.Error as error:
            values, spanned = _join(texts, number, len(names), layout)
            if not spanned and not last:
                rest = b"\n".join(texts[number:]) + (b"\n" if block.endswith(b"\n") else b"")
                break
            spanned = max(spanned, 1)
            reason = "" if values else f"quotes do not match ({error})"
        if not _is_valid(b"\n".join(texts[number : number + spanned]), layout):
            reason = f"not valid {layout.encoding}"
        elif not reason and len(values) != len(names):
            reason = _wrong_width(len(values), len(names), layout)
        if reason:
            failures.append((number, reason))
        else:
            rows.append(values)
            lines.append(number)
        number += spanned
    strings = [pa.array([row[i] for row in rows], pa.string()) for i in range(len(names))]
    return (strings, np.array(lines, dtype=np.int64), failures), rest


def _decode(line: bytes, layout: Layout) -> str:
    return line.removesuffix(b"\r").decode(layout.encoding, errors="surrogateescape")


def _is_valid(text: bytes, layout: Layout) -> bool:
    try:
        text.decode(layout.encoding)
    except UnicodeDecodeError:
        return False
    return True


def _split(text: str, layout: Layout) -> list[str]:
    if not layout.quoted:
        return text.split(layout.delimiter)
    if not text:
        return [""]
    return next(csv.reader([text], delimiter=layout.delimiter, escapechar=layout.escape, strict=True))


def _join(texts: list[bytes], number: int, width: int, layout: Layout) -> tuple[list[str], int]:
    """Values of a row that begins in line `number` and spans several lines, and how many.

    Returns no values and 1 if no quote is open, or one was left open by mistake; no values and 0 if the quote is still
    open after the last line.
    """

    def following() -> Iterator[str]:
        for at in range(number, len(texts)):
            yield _decode(texts[at], layout) + "\n"
        raise EOFError

    reader = csv.reader(following(), delimiter=layout.delimiter, escapechar=layout.escape, strict=True)
    try:
        values = next(reader)
    except EOFError:
        return [], 0
    except csv.Error:
        return [], 1
    within = texts[number + 1 : number + reader.line_num - 1]
    if len(within) >= ROWS_WITHIN and all(_has_width(text, width, layout) for text in within):
        return [], 1
    return values, reader.line_num


def _has_width(line: bytes, width: int, layout: Layout) -> bool:
    try:
        return len(_split(_decode(line, layout), layout)) == width
    except csv.Error:
        return False


def _wrong_width(found: int, expected: int, layout: Layout) -> str:
    return f"{found} values instead of {expected} when split at {layout.delimiter!r}"
