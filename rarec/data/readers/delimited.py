"""Delimited text through DuckDB: exact line numbers, and an open quote costs one line.

DuckDB says which rows it cannot read. It numbers rows, not lines, and lets an open quote swallow what follows. So lines
with an odd number of quotes are examined before, one by one.
"""

import codecs
import csv
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from rarec.data.quarantine import SHOWN
from rarec.data.readers.connection import file_literal, literal, numbered, value_of
from rarec.data.readers.rows import NOT_UTF8, UNNAMED, Rows, blank_lines, line_texts, pieces
from rarec.data.readers.text import TextFile, blank_out, plain
from rarec.errors import InputError, one_line
from rarec.types import IntArray

LONGEST_LINE = 32 << 20  # bytes
ROWS_WITHIN = 3  # a value of this many complete rows and nothing else means that a quote was left open
ATTEMPTS = 3  # at reading a file whose quotes do not match
BEHIND_QUOTE = "quotes do not match (text behind a closing quote)"
NOTHING = "\x02"  # no text stands for a missing value here; that is decided later

csv.field_size_limit(LONGEST_LINE)


@dataclass(frozen=True)
class Dialect:
    """How a delimited file is written.

    Attributes:
        delimiter: Text between two values.
        names: Column names, in order; None if they are in the first line.
        quote: Character around values, or empty.
        escape: Character that escapes a quote inside a quoted value, apart from doubling it; or empty.
        header: Whether the first line has names. Where `names` are given, they replace them.
    """

    delimiter: str
    names: tuple[str, ...] | None = None
    quote: str = ""
    escape: str = ""
    header: bool = True

    def split(self, line: str) -> list[str]:
        """Values of one line.

        Raises:
            csv.Error: The quotes do not match.
        """
        if not self.quote:
            return line.split(self.delimiter)
        return next(self.reader(iter([line])), [""])

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Values of rows that may span several lines."""
        escape = self.escape or None
        # DuckDB takes a quote behind one blank for the beginning of a quoted value.
        near, away = f"{self.delimiter}{self.quote}", f"{self.delimiter} {self.quote}"
        closer = (line.replace(away, near) for line in lines)
        return csv.reader(closer, delimiter=self.delimiter, quotechar=self.quote, escapechar=escape, strict=True)


@dataclass(frozen=True)
class _Quotes:
    """What quotes do to the lines of a file.

    Attributes:
        faults: (line, reason, text) of each line that leaves a quote open.
        spans: (line, number of further lines) of each row that spans several lines.
    """

    faults: list[tuple[int, str, str]]
    spans: list[tuple[int, int]]

    def without(self, lines: list[tuple[int, str, str]]) -> "_Quotes":
        """The same, with these lines among the faults."""
        own = {line for line, *_ in lines}
        faults = [fault for fault in self.faults if fault[0] not in own]
        return _Quotes(sorted([*faults, *lines]), [span for span in self.spans if span[0] not in own])


def first_line(file: TextFile) -> str:
    """The first line of the file, without its end."""
    with file.open() as stream:
        text = stream.read(1 << 20).removeprefix(codecs.BOM_UTF8).decode(errors="replace")
    return text.split("\n", 1)[0].rstrip("\r")


def header(file: TextFile, dialect: Dialect) -> tuple[str, ...]:
    """Values of the first line."""
    try:
        return tuple(dialect.split(first_line(file)))
    except csv.Error as error:
        raise InputError(f"{file.name}: the quotes in the first line do not match; correct it.") from error


def read_delimited(
    database: duckdb.DuckDBPyConnection, file: TextFile, dialect: Dialect, table: str, scratch: Path, most: int
) -> Rows:
    """Read a file into a new table.

    Args:
        database: Where the table goes.
        file: The file.
        dialect: How it is written.
        table: Its name.
        scratch: Folder for temporary files.
        most: Number of bad rows above which the file is of no use, so that only the first ones are looked at.

    Raises:
        InputError: The file cannot be read with this dialect.
    """
    names = dialect.names if dialect.names is not None else header(file, dialect)
    repeated = [name for name in names if names.count(name) > 1 and name.strip()]
    if repeated:
        raise InputError(
            f"{file.name}: two columns have the name {repeated[0]!r} in the first line; rename one of them."
        )
    if not any(name.strip() for name in names):
        raise InputError(f"{file.name}: the first line is blank; remove it, so that the file begins with its columns.")
    names = tuple(name if name.strip() else f"{UNNAMED}{place}" for place, name in enumerate(names, 1))
    quoting = bool(dialect.quote) and len(dialect.delimiter) == 1
    if quoting:
        file = plain(file, scratch)
    misread: list[tuple[int, str, str]] = []  # lines whose quotes DuckDB reads in another way than `_examine`
    for attempt in range(ATTEMPTS):
        quotes, source = _examine(file, dialect, len(names), attempt > 0) if quoting else _Quotes([], []), file
        quotes = quotes.without(misread)
        if quotes.faults:
            source = blank_out(file, {line for line, _, _ in quotes.faults}, scratch)
        rejected = _load(database, source, dialect, names, table)
        if quoting and attempt < ATTEMPTS - 1 and (found := _misread(database, file, _Spans.of(quotes.spans), scratch)):
            misread = found if attempt else []  # at first, not all rows that span lines are known
            continue
        count = value_of(database, f"SELECT count(*) FROM {table}")
        spans = _Spans.of(quotes.spans)
        out = np.union1d(rejected, [1] if dialect.header else []).astype(np.int64)
        if file.lines - spans.further - len(out) != count:
            out = np.union1d(out, spans.records(blank_lines(plain(source, scratch).path)))
        if file.lines - spans.further - len(out) == count:
            break
    else:  # a line with an even number of quotes leaves one open, and even examining each line has not told which
        raise InputError(
            f"{file.name}: its quotes do not match, so its rows cannot be told apart. If it does not quote its values, "
            'set `quote = ""` in its source (format = "table"); else correct it.'
        )
    # Of the records that are rows, the one with number n is preceded by those that are none.
    before = out - np.arange(len(out))

    def lines(n: IntArray) -> IntArray:
        numbers = np.asarray(n, dtype=np.int64) + 1
        return spans.lines(numbers + np.searchsorted(before, numbers, side="right"))

    def texts(wanted: IntArray) -> list[str]:
        return line_texts(plain(file, scratch).path, wanted)

    if len(rejected):
        file = plain(file, scratch)
        rejected = rejected[~np.isin(spans.lines(rejected), blank_lines(file.path))]
    unseen = max(0, len(rejected) - SHOWN) if len(rejected) > most else 0
    rejected = rejected[: len(rejected) - unseen]
    reasons = _reasons(database, dialect, len(names), rejected)
    numbers = spans.lines(rejected)
    bad = [one for one in zip(numbers.tolist(), reasons, texts(numbers), strict=True) if one[2].strip(" \r\n")]
    bad += quotes.faults
    return Rows(
        file=file.name,
        table=table,
        names=names,
        types=("VARCHAR",) * len(names),
        total=count + len(bad) + unseen,
        bad=sorted(bad),
        unseen=unseen,
        lines=lines,
        split=f"split at {dialect.delimiter!r}, it has",
        texts=texts,
    )


def _load(
    database: duckdb.DuckDBPyConnection, file: TextFile, dialect: Dialect, names: tuple[str, ...], table: str
) -> IntArray:
    """Create the table; returns the number from 1 of each record that DuckDB rejects, in order."""
    columns = ", ".join(f"c{place}: 'VARCHAR'" for place in range(len(names)))
    escape = (dialect.escape or dialect.quote) if dialect.quote else ""
    options = (
        f"columns={{{columns}}}, auto_detect=false, header={dialect.header}, delim={literal(dialect.delimiter)}, "
        f"quote={literal(dialect.quote)}, escape={literal(escape)}, compression='{file.compression}', "
        f"max_line_size={LONGEST_LINE}, nullstr='{NOTHING}', store_rejects=true, rejects_table='rejects', "
        "rejects_scan='scans'"
    )
    for name in (table, "rejects", "scans"):
        database.execute(f"DROP TABLE IF EXISTS {name}")
    try:
        database.execute(
            f"CREATE TABLE {table} AS SELECT row_number() OVER () - 1 AS n, * "
            f"FROM read_csv({file_literal(file.path)}, {options})"
        )
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(one_line(error)) from error
    except duckdb.Error as error:
        raise InputError(
            f"{file.name}: it cannot be read as text separated by {dialect.delimiter!r}: {one_line(error)[:200]}"
        ) from error
    return np.asarray(database.sql("SELECT DISTINCT line FROM rejects ORDER BY line").fetchnumpy()["line"], np.int64)


def _misread(
    database: duckdb.DuckDBPyConnection, file: TextFile, spans: "_Spans", scratch: Path
) -> list[tuple[int, str, str]]:
    """Line, reason and text of the records in which DuckDB finds text behind a quote, and may swallow what follows."""
    found = database.sql(
        "SELECT DISTINCT line FROM rejects WHERE error_type::VARCHAR = 'UNQUOTED VALUE' ORDER BY line"
    ).fetchnumpy()["line"]
    if not len(found):
        return []
    lines = spans.lines(np.asarray(found, dtype=np.int64))
    texts = line_texts(plain(file, scratch).path, lines)
    return [(line, BEHIND_QUOTE, text) for line, text in zip(lines.tolist(), texts, strict=True)]


def _reasons(database: duckdb.DuckDBPyConnection, dialect: Dialect, width: int, rejected: IntArray) -> list[str]:
    """Why each of these records is rejected."""
    # A row with values too few is reported once for each that it lacks, with a growing number of those found.
    rank = (
        "coalesce(try_cast(regexp_extract(error_message, 'Found: ([0-9]+)', 1) AS BIGINT) "
        "* if(error_type::VARCHAR = 'MISSING COLUMNS', -1, 1), 1000000)"
    )
    one_each = (
        f"SELECT line AS n, arg_max(error_type::VARCHAR, rank) AS kind, arg_max(error_message, rank) AS message "
        f"FROM (SELECT *, {rank} AS rank FROM rejects) GROUP BY line"
    )
    found = database.sql(numbered(database, f"({one_each})", "kind, message", rejected)).fetchall()
    return [_reason(kind, message, width, dialect) for kind, message in found]


def _reason(kind: str, message: str, width: int, dialect: Dialect) -> str:
    if (found := re.search(r"Found: (\d+)", message)) is not None:
        return f"{found[1]} values instead of {width} when split at {dialect.delimiter!r}"
    if kind == "INVALID ENCODING":
        return NOT_UTF8
    if kind == "UNQUOTED VALUE":
        return BEHIND_QUOTE
    return f"longer than {LONGEST_LINE:,} bytes" if kind == "LINE SIZE OVER MAXIMUM" else message.split("\n")[0]


@dataclass(frozen=True)
class _Spans:
    """Records that span several lines, in order.

    Attributes:
        first: (S,) line from 1 on which each begins.
        number: (S,) its number from 1 among all records; blank lines are records, too.
        total: (S + 1,) further lines of the first s of them.
    """

    first: IntArray
    number: IntArray
    total: IntArray

    @classmethod
    def of(cls, spans: list[tuple[int, int]]) -> "_Spans":
        """From (line, number of further lines)."""
        first, more = (np.array([span[at] for span in spans], dtype=np.int64) for at in (0, 1))
        total = np.concatenate([[0], more.cumsum()])
        return cls(first, first - total[:-1], total)

    @property
    def further(self) -> int:
        """Number of lines on which no record begins."""
        return int(self.total[-1])

    def lines(self, numbers: IntArray) -> IntArray:
        """(N,) first line of each of the records `numbers`."""
        return numbers + self.total[np.searchsorted(self.number, numbers, side="left")]

    def records(self, lines: IntArray) -> IntArray:
        """Numbers of the records that begin on one of the `lines`."""
        place = np.searchsorted(self.first, lines, side="right")
        ends = np.concatenate([[0], self.first + np.diff(self.total)])
        return lines[lines > ends[place]] - self.total[place[lines > ends[place]]]


def _examine(file: TextFile, dialect: Dialect, width: int, every_line: bool) -> _Quotes:
    """Lines that open a quote by mistake, and rows that span lines.

    A line with an even number of quotes is complete, unless an earlier line opened a quote; or so it is taken to be,
    until the numbers of lines and rows contradict it. Then `every_line` with a quote is examined.
    """
    odd = []
    for first, piece, ends in pieces(file.path):
        text = np.frombuffer(piece, dtype=np.uint8)
        marks = text == ord(dialect.quote)
        if not marks.any():
            continue
        if dialect.escape and dialect.escape != dialect.quote:
            marks[1:] &= text[:-1] != ord(dialect.escape)
        counts = np.diff(np.searchsorted(np.flatnonzero(marks), ends, side="right"))
        odd.append(first + np.flatnonzero(counts if every_line else counts % 2))
    lines = np.concatenate([np.empty(0, np.int64), *odd])
    if not len(lines):
        return _Quotes([], [])
    faults: list[tuple[int, str, str]] = []
    spans: list[tuple[int, int]] = []
    with file.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = _line_starts(file.path, lines)
        end = 0  # the last line of the row before
        for line, start in zip(lines.tolist(), starts.tolist(), strict=True):
            if line <= end:
                continue
            spanned, reason = _row_from(content, start, dialect, width)
            if reason:
                faults.append((line, reason, _decode(content, start)))
            elif spanned > 1:
                spans.append((line, spanned - 1))
                end = line + spanned - 1
    return _Quotes(faults, spans)


def _line_starts(path: Path, lines: IntArray) -> IntArray:
    """(L,) place of the first byte of each of the `lines`."""
    found, place = [], 0
    for first, piece, ends in pieces(path):
        inside = lines[(lines >= first) & (lines < first + len(ends) - 1)]
        found.append(place + ends[inside - first] + 1)
        place += len(piece)
    return np.concatenate([np.empty(0, np.int64), *found])


def _decode(content: mmap.mmap, start: int) -> str:
    """The line that begins at `start`."""
    end = content.find(b"\n", start)
    line = content[start : len(content) if end < 0 else end]
    return line.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape").rstrip("\r")


def _row_from(content: mmap.mmap, start: int, dialect: Dialect, width: int) -> tuple[int, str]:
    """Number of lines of the row that begins at `start`, and why it is none."""
    try:
        dialect.split(_decode(content, start))
        return 1, ""  # its quotes stand inside a value
    except csv.Error as error:
        reason = BEHIND_QUOTE if "expected after" in str(error) else f"quotes do not match ({error})"
    read: list[str] = []

    def following() -> Iterator[str]:
        place, size = start, 0
        while place < len(content) and size < LONGEST_LINE:
            end = content.find(b"\n", place)
            end = len(content) if end < 0 else end
            read.append(_decode(content, place))
            size += end - place
            place = end + 1
            yield read[-1] + "\n"
        raise EOFError

    reader = dialect.reader(following())
    try:
        next(reader)
    except (EOFError, csv.Error):
        return 1, reason
    within = read[1:-1]
    if len(within) >= ROWS_WITHIN and all(_has_width(text, width, dialect) for text in within):
        return 1, reason
    return len(read), ""


def _has_width(line: str, width: int, dialect: Dialect) -> bool:
    try:
        return len(dialect.split(line)) == width
    except csv.Error:
        return False
