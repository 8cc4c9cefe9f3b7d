"""The dialect of a delimited file: as its format or the data set says, else as the file's first lines tell."""

import csv
from collections.abc import Iterator
from dataclasses import replace

from rarec.data.formats.forms import form_before
from rarec.data.formats.published import Form, by_alias, same
from rarec.data.formats.values import NOTHING
from rarec.data.readers.delimited import Dialect
from rarec.data.readers.text import EmptyFile, TextFile
from rarec.data.source_spec import Role, SourceSpec
from rarec.errors import InputError

DELIMITERS = ("\t", ",", ";", "|", "::", "\x01")  # the last is Hive's
LOOKED_AT = 1000  # lines
QUOTES_LOOKED_AT = 200_000  # lines
LIKE_FIRST = 0.5  # share of lines with as many values as the first from which that is no coincidence
AMAZON_ID = 10  # characters of an asin; reviewers' ids are longer


def choose_dialect(file: TextFile, source: SourceSpec, role: Role) -> Dialect:
    """The dialect in which to read a file.

    Raises:
        InputError: The file has no columns that can be told apart.
    """
    form = form_before(source, role)
    if source.format == "recbole":
        return Dialect("\t", quote='"' if _is_quoted(file, "\t") else "")
    if source.format == "table":
        return _told(file, source, role)
    if len(form.dialects) == 1 and form.dialects[0].names:
        return form.dialects[0]
    first = next(head(file, 1), "")
    dialect = next((one for one in form.dialects if len(_values(first, one)) > 1), form.dialects[0])
    values = _values(first, dialect)
    if form.positions and len(values) == len(form.positions) and _is_number(values[-1]) and _is_number(values[-2]):
        return replace(dialect, names=_places(file, form, dialect), header=False)
    return dialect


def _places(file: TextFile, form: Form, dialect: Dialect) -> tuple[str, ...]:
    """Column names of a file of ratings without a header. Amazon's edition of 2018 has the product first."""
    rows = [_values(line, dialect) for line in head(file, LOOKED_AT)]
    product_first = all(len(row[0]) == AMAZON_ID for row in rows) and all(len(row[1]) > AMAZON_ID for row in rows)
    user, item, *rest = form.positions
    return (item, user, *rest) if form.records and product_first else form.positions


def head(file: TextFile, lines: int) -> Iterator[str]:
    """The first lines that are not blank, without their ends."""
    with file.open() as stream:
        held, decoded = b"", 0
        while decoded < lines:
            chunk = stream.read(1 << 20)
            *whole, held = (held + chunk).split(b"\n")
            if not chunk:
                whole, held = [held], b""
            for line in whole:
                text = line.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").rstrip("\r")
                if text.strip() and decoded < lines:
                    decoded += 1
                    yield text
            if not chunk:
                return


def _values(line: str, dialect: Dialect) -> list[str]:
    try:
        return dialect.split(line)
    except csv.Error:
        return line.split(dialect.delimiter)


def _told(file: TextFile, source: SourceSpec, role: Role) -> Dialect:
    """The dialect of a table, as far as the data set does not say it."""
    lines = list(head(file, LOOKED_AT))
    if not lines:
        raise EmptyFile(f"{file.name}: the file holds no rows; get a complete copy of it.")
    delimiter = source.delimiter or find_delimiter(lines)
    if delimiter is None:
        raise InputError(
            f"{file.name}: its columns cannot be told apart; the first line is {lines[0][:80]!r}. Set `delimiter` in "
            "the source."
        )
    quote = source.quote
    if quote is None:
        quote = '"' if len(delimiter) == 1 and (delimiter != "\t" or _is_quoted(file, delimiter)) else ""
    dialect = with_escape(lines, Dialect(delimiter, quote=quote))
    header = source.header if source.header is not None else has_header(lines, dialect, source, role)
    placed = any(name.isdecimal() for name in source.columns.get(role, {}))
    if source.header is not False and not placed:
        _refuse_foreign_line(file, lines, dialect, role)
    if header:
        return dialect
    widths = [len(_values(line, dialect)) for line in lines]
    return replace(dialect, names=tuple(str(place) for place in range(1, _usual(widths) + 1)), header=False)


def _usual(widths: list[int]) -> int:
    """The most frequent number of values."""
    return max(set(widths), key=widths.count)


def _refuse_foreign_line(file: TextFile, lines: list[str], dialect: Dialect, role: Role) -> None:
    """Raise InputError if a first line without known names has fewer values than almost all others."""
    first, *widths = (len(_values(line, dialect)) for line in lines)
    if by_alias(role, tuple(_values(lines[0], dialect))) or len(widths) < 2:
        return
    usual = _usual(widths)
    if first < usual and widths.count(usual) > 0.9 * len(widths):
        raise InputError(
            f"{file.name}: the first line has {first} values, the others have {usual}; it is {lines[0][:80]!r}. If it "
            "does not hold the names of the columns, remove it."
        )


def find_delimiter(lines: list[str]) -> str | None:
    """The delimiter that splits most lines into as many values as the first one, and into the most; None without any.

    Where the first line is unlike the others, the usual number of values counts.
    """
    best, found = (False, 0.0, 1), None
    for delimiter in DELIMITERS:
        dialect = Dialect(delimiter, quote='"' if len(delimiter) == 1 else "")
        widths = _widths(lines, dialect)
        first = widths[0]
        like_first = first > 1 and widths.count(first) >= LIKE_FIRST * len(widths)
        usual = first if like_first else _usual(widths)
        share = round(widths.count(usual) / len(widths), 1)
        if usual > 1 and (like_first, share, usual) > best:
            best, found = (like_first, share, usual), delimiter
    return found


def _widths(lines: list[str], dialect: Dialect) -> list[int]:
    """Number of values of each line, or of each row if rows that span lines make it more regular."""
    by_line = [len(_values(line, dialect)) for line in lines]
    if not dialect.quote:
        return by_line
    rows = csv.reader((line + "\n" for line in lines), delimiter=dialect.delimiter, quotechar=dialect.quote)
    by_row = [len(row) for row in rows]

    def regular(widths: list[int]) -> float:
        return widths.count(widths[0]) / len(widths)

    return max(by_line, by_row, key=regular)


def with_escape(lines: list[str], dialect: Dialect) -> Dialect:
    """The dialect with a backslash as its escape, if that makes more lines readable: a value may also end in one."""
    doubtful = [line for line in lines if dialect.quote and f"\\{dialect.quote}" in line]
    escaping = replace(dialect, escape="\\")

    def unreadable(one: Dialect) -> int:
        width = len(_values(lines[0], one))
        return sum(len(_strict(line, one)) != width for line in doubtful)

    return escaping if doubtful and unreadable(escaping) < unreadable(dialect) else dialect


def _strict(line: str, dialect: Dialect) -> list[str]:
    """Values of a line; none if its quotes do not match."""
    try:
        return dialect.split(line)
    except csv.Error:
        return []


def has_header(lines: list[str], dialect: Dialect, source: SourceSpec, role: Role) -> bool:
    """Whether the first line has names.

    It has if a name in it is known, or is one that the data set maps. It has none if it holds a number, or the data set
    counts columns.
    """
    first = _values(lines[0], dialect)
    named = set(source.columns.get(role, {}))
    if {name for name in named if not name.isdecimal()} & set(first) or by_alias(role, tuple(first)):
        return True
    if any(name.isdecimal() for name in named) or any(map(_is_number, first)):
        return False
    return len(lines) > 1 and any(_is_number(value) for value in _values(lines[1], dialect))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return same(text) not in {same(word) for word in NOTHING}


def _is_quoted(file: TextFile, delimiter: str) -> bool:
    """Whether values are in quotes where they hold quotes themselves, as pandas writes them.

    Then every value that begins with a quote ends with one, has only doubled quotes inside, and some have. Otherwise a
    quote is part of a title.
    """
    doubled = False
    for line in head(file, QUOTES_LOOKED_AT):
        if '"' not in line:
            continue
        for value in line.split(delimiter):
            if not value.startswith('"'):
                continue
            inside = value[1:-1]
            if len(value) < 2 or not value.endswith('"') or '"' in inside.replace('""', ""):
                return False
            doubled |= '""' in inside or (line.startswith('"') and line.count('"') >= 2 * len(line.split(delimiter)))
    return doubled
