"""One role's files (interactions, items or users) as one DuckDB table under our column names.

Rows that cannot be used go to the quarantine with file, line and reason.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import numpy as np

from rarec.data.formats.dialects import choose_dialect, head
from rarec.data.formats.forms import Form, find_column, form_before, form_of
from rarec.data.formats.impressions import LISTS, spread
from rarec.data.formats.values import (
    NOTHING,
    UNIT_WORDS,
    UNITS,
    WRITTEN_DAYS,
    Value,
    id_value,
    number_value,
    text_value,
    time_value,
)
from rarec.data.quarantine import SHOWN, Quarantine
from rarec.data.readers.columnar import EXACT, read_parquet
from rarec.data.readers.connection import numbered, quoted, value_of
from rarec.data.readers.delimited import read_delimited
from rarec.data.readers.records import first_object, read_records
from rarec.data.readers.rows import FILE, NOT_UTF8, N, Rows
from rarec.data.readers.text import EmptyFile, kind_of, prepare
from rarec.data.source_spec import OWN, Role, SourceSpec
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError
from rarec.types import IntArray

ID_COLUMNS = ("user_id", "item_id")
FAULT = '"#fault"'
KNOWN = (*ID_COLUMNS, "rating", "timestamp", "order")
LOOKED_AT = 1000  # bad times
MANY = 1_000_000  # bad rows; more are refused whatever the limit is, as they are kept in memory
MOST = 0.9  # share of the times that a unit must explain before it is named


@dataclass
class Reading:
    """What reading the files of one role takes.

    Attributes:
        database: Where tables go.
        spec, source: The data set, and the form in which its files came.
        role: The role.
        quarantine: Receives unreadable rows.
        scratch: Folder for temporary files.
        latest_s: Latest plausible time, in seconds since 1970.
        wanted: Ids of the items of interest, in the form of `coarse`. Other items may be left out.
        optional: Our names of columns that may be empty.
        keep: Our names of the columns to keep; None keeps all.
        incoming: Whether the file arrived after publication; then a file without rows is no error.
        warnings: Receives sentences on what a user should know.
        lines: Receives, for each file, what turns `n` into lines.
        counts: Receives the number of readable rows of each file.
    """

    database: duckdb.DuckDBPyConnection
    spec: DatasetSpec
    source: SourceSpec
    role: Role
    quarantine: Quarantine
    scratch: Path
    latest_s: float
    wanted: Collection[str] | None = None
    optional: tuple[str, ...] = ()
    keep: tuple[str, ...] | None = None
    incoming: bool = False
    warnings: list[str] = field(default_factory=list)
    lines: list[Callable[[IntArray], IntArray]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


def read_role(reading: Reading, paths: list[Path], names: list[str]) -> None:
    """Read the files of one role into the table named after it, in order.

    The table has our column names, with ids as text and `timestamp` in microseconds, and the columns `FILE` (number
    of the file from 0) and `N` (number of the row from 0; `Reading.lines` has its line).

    Args:
        reading: What it takes, and what receives the rest.
        paths: The files.
        names: Names that tell them apart. A part may be empty if there are several.

    Raises:
        InputError: A file cannot be read, lacks a column, or has too many bad rows.
    """
    database, role, quarantine = reading.database, reading.role, reading.quarantine
    parts: list[str] = []
    total, most, hint = 0, 0, ""
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        try:
            rows = replace(read_rows(reading, path, len(paths)), file=name)
        except EmptyFile:
            if len(paths) == 1:
                raise
            reading.warnings.append(f"{name}: the file is empty.")
            reading.counts.append(0)
            continue
        for line, reason, text in rows.bad:
            quarantine.add(rows.file, line, reason, text)
        if rows.unseen:
            quarantine.add_unseen(rows.file, rows.unseen)
            quarantine.check([rows.file], rows.total, _encoding_hint(reading, rows))
        rows = _spread_lists(reading, rows)
        form = form_of(rows, reading.spec, reading.source, role, reading.incoming)
        reading.warnings += [
            f"{rows.file}: there is no column {name!r}, which the data set names." for name in form.absent
        ]
        reading.lines.append(rows.lines)
        total += rows.total
        parts.append(f"{role}_{number}")
        advice = _convert(reading, rows, form, number, parts[-1], len(paths))
        if advice and quarantine.count(rows.file) > most:
            most, hint = quarantine.count(rows.file), advice
        reading.counts.append(value_of(database, f"SELECT count(*) FROM {parts[-1]}"))
    hint = hint if most > sum(map(quarantine.count, names)) / 2 else ""
    quarantine.check(names, total, hint)
    if not sum(reading.counts) and not reading.incoming:
        if total:
            quarantine.refuse(names, total, hint)
        raise InputError(f"{names[0]}: the file holds no rows; get a complete copy of it.")
    database.execute(f"DROP TABLE IF EXISTS {role}")
    if len(parts) == 1:
        database.execute(f"ALTER TABLE {parts[0]} RENAME TO {role}")
    else:
        union = " UNION ALL BY NAME ".join(f"SELECT * FROM {part}" for part in parts)
        database.execute(f"CREATE TABLE {role} AS {union}")
        for part in parts:
            database.execute(f"DROP TABLE {part}")


def _spread_lists(reading: Reading, rows: Rows) -> Rows:
    """The rows, one for each item if they hold lists of items."""
    for published, ours in reading.source.columns.get(reading.role, {}).items():
        if reading.role == "interactions" and ours in LISTS:
            found = find_column(rows.names, published, reading.incoming)
            return rows if found is None else spread(reading.database, rows, found, ours)
    return rows


def read_rows(reading: Reading, path: Path, parts: int = 1) -> Rows:
    """The rows of one file, of so many parts, as text, whatever it is written in.

    Raises:
        InputError: The file cannot be read.
    """
    database, source, role = reading.database, reading.source, reading.role
    if kind_of(path) == "parquet":
        return read_parquet(database, path, path.name, "part")
    before = form_before(source, role)
    file = prepare(path, reading.scratch, source.encoding or before.encoding)
    if reading.incoming and not (source.delimiter and source.delimiter in next(head(file, 1), "")):
        source = source.model_copy(update={"delimiter": None, "quote": None})  # not written as the published files are
    most = _most(reading, file.lines, parts)
    if before.records and first_object(file)[:1] in ("{", "["):
        wanted = reading.wanted if role == "items" else None
        return read_records(database, file, "part", reading.scratch, most, before.key, wanted)
    return read_delimited(database, file, choose_dialect(file, source, role), "part", reading.scratch, most)


def _most(reading: Reading, rows: int, parts: int) -> int:
    """Bad rows of one file, with so many rows, above which reading fails.

    The limit holds for all parts together, so it is known only after the last one.
    """
    room = max(0, MANY - reading.quarantine.size)
    return room if parts > 1 else min(room, int(reading.quarantine.limit * rows))


def _values(reading: Reading, rows: Rows, form: Form) -> dict[str, tuple[str, Value]]:
    """Published name and reading of each of our columns, in file order."""
    spec, null_values = reading.spec, reading.source.null_values
    nothing = NOTHING if null_values is None else null_values
    values: dict[str, tuple[str, Value]] = {}
    for published in rows.names:
        ours, column = form.rename.get(published, published), rows.column(published)
        if published not in form.rename and ours in form.rename.values():
            continue  # the data set means another column by this name
        if ours.lower() in (other.lower() for other in values):
            if published in form.rename or ours in KNOWN:
                raise InputError(f"{rows.file}: two columns have the name {ours!r}; correct the column mapping.")
            continue  # a column of no meaning here, whose name differs in its case only
        optional = ours in reading.optional
        if reading.keep is not None and ours not in reading.keep:
            continue
        if ours in ID_COLUMNS:
            _refuse_floats(reading.database, rows, published, ours)
            value = id_value(column, nothing, nested=rows.types[rows.names.index(published)] != "VARCHAR")
        elif reading.role == "interactions" and ours == "rating":
            low, high = spec.rating_scale or (-np.inf, np.inf)
            value = number_value(column, low, high, spec.implicit_rating, optional)
        elif reading.role == "interactions" and ours == "timestamp":
            value = time_value(column, form.unit, reading.latest_s, optional)
        elif reading.role == "interactions" and ours == "order":
            value = number_value(column, 0, 2.0**53, expected="a place within the user, counted from 0 or 1")
        elif published in form.numeric:
            value = number_value(column, -np.inf, np.inf, optional=True)
        else:
            value = text_value(column)
        values[ours] = (published, value)
    return values


def _refuse_floats(database: duckdb.DuckDBPyConnection, rows: Rows, published: str, name: str) -> None:
    """Raise InputError if a column of floats holds ids that floats cannot tell apart."""
    exact = EXACT.get(rows.types[rows.names.index(published)])
    if exact is None:
        return
    found = value_of(
        database,
        f"SELECT any_value({rows.column(published)}) FROM {rows.table} "
        f"WHERE abs(TRY_CAST({rows.column(published)} AS DOUBLE)) >= {exact}",
    )
    if found is not None:
        bits = 32 if exact == EXACT["FLOAT"] else 64
        raise InputError(
            f"{rows.file}: {name} {found!r} is a {bits}-bit float, which cannot tell ids above {exact:,} apart, so ids "
            "are lost. Export ids as text or as whole numbers."
        )


def _convert(reading: Reading, rows: Rows, form: Form, number: int, table: str, parts: int) -> str:
    """Make the typed table of one file, and quarantine the rows where that fails.

    Returns what to do about its bad rows, if they are many and it is plain.
    """
    database, quarantine = reading.database, reading.quarantine
    values = _values(reading, rows, form)
    for name in form.required:
        if name not in values:
            raise InputError(_lacks(rows, name, form))
    chosen = list(values.items())
    read = ", ".join(f"{value.value} AS v{place}" for place, (_, (_, value)) in enumerate(chosen))
    faults = [
        value.fault.format(x=rows.column(published), v=f"v{place}")
        for place, (_, (published, value)) in enumerate(chosen)
    ]
    first = "CASE " + " ".join(f"WHEN {fault} THEN {place}" for place, fault in enumerate(faults)) + " ELSE -1 END"
    columns = ", ".join(
        f"{_stored(name, value, place)} AS {quoted(name)}" for place, (name, (_, value)) in enumerate(chosen)
    )
    database.execute(f"DROP TABLE IF EXISTS {table}")
    database.execute(
        f"CREATE TABLE {table} AS SELECT {number} AS {FILE}, n AS {N}, {columns}, {first} AS {FAULT} "
        f"FROM (SELECT *, {read} FROM {rows.table})"
    )
    bad = database.sql(f"SELECT {N} AS n, {FAULT} AS fault FROM {table} WHERE {FAULT} >= 0 ORDER BY 1").fetchnumpy()
    numbers = np.asarray(bad["n"], dtype=np.int64)
    places = np.asarray(bad["fault"], dtype=np.int64)
    _set_aside(reading, rows, chosen, numbers, places, parts)
    many = quarantine.count(rows.file) > min(quarantine.limit * rows.total, rows.total - 1)
    hint = _hint(reading, rows, chosen, numbers, places) if many else ""
    database.execute(f"DELETE FROM {table} WHERE {FAULT} >= 0")
    database.execute(f"ALTER TABLE {table} DROP COLUMN {FAULT}")
    database.execute(f"DROP TABLE {rows.table}")
    return hint


def _stored(name: str, value: Value, place: int) -> str:
    if value.kind == "number" and name == "rating":
        return f"CAST(v{place} AS FLOAT)"
    return f"CAST(trunc(v{place}) AS BIGINT)" if value.kind == "number" and name == "order" else f"v{place}"


def _set_aside(
    reading: Reading,
    rows: Rows,
    chosen: list[tuple[str, tuple[str, Value]]],
    numbers: IntArray,
    faults: IntArray,
    parts: int,
) -> None:
    """Quarantine the rows `numbers`. If they are too many, only the first ones are looked at before the error."""
    quarantine, shown = reading.quarantine, len(numbers)
    if shown > _most(reading, rows.total, parts):
        shown = min(shown, SHOWN)
    lines = rows.lines(numbers[:shown])
    texts = rows.texts(lines) if shown else []
    for place in sorted(set(faults[:shown].tolist())):
        name, (published, value) = chosen[place]
        at = np.flatnonzero(faults[:shown] == place)
        columns = f"{rows.column(published)}, {value.value}"
        found = reading.database.sql(numbered(reading.database, rows.table, columns, numbers[at])).fetchall()
        for row, (text, read) in zip(at.tolist(), found, strict=True):
            quarantine.add(rows.file, int(lines[row]), value.reason(name, published, text, read), texts[row])
    quarantine.add_unseen(rows.file, len(numbers) - shown)


def _hint(
    reading: Reading,
    rows: Rows,
    chosen: list[tuple[str, tuple[str, Value]]],
    numbers: IntArray,
    faults: IntArray,
) -> str:
    """What to do if most of the bad rows are in another encoding, or have times in another unit."""
    if advice := _encoding_hint(reading, rows):
        return advice
    half = reading.quarantine.count(rows.file) / 2
    place = next((p for p, (name, _) in enumerate(chosen) if name == "timestamp"), None)
    if place is None or (faults == place).sum() <= half:
        return ""
    column = rows.column(chosen[place][1][0])
    some = numbered(reading.database, rows.table, column, numbers[faults == place][:LOOKED_AT])
    times = f"SELECT {column} FROM ({some}) WHERE trim({column}) != ''"
    if not value_of(reading.database, f"SELECT count(*) FROM ({times})"):
        return ""
    if (unit := find_unit(reading.database, column, times, reading.latest_s)) is not None:
        words = UNIT_WORDS.get(unit, f"text like {unit}")
        return f'The times look like {words}: set `time_unit = "{unit}"` in the source.'
    return (
        'If they count something else than time since 1970, set `time = "order"` for the data set; other forms are '
        "read with `time_unit`."
    )


def _encoding_hint(reading: Reading, rows: Rows) -> str:
    """What to do if most of the bad rows that were seen are in another encoding."""
    seen = reading.quarantine.count(rows.file) - rows.unseen
    if sum(reason == NOT_UTF8 for _, reason, _ in rows.bad) <= seen / 2 or reading.source.format not in OWN:
        return ""
    return 'If the file is in another encoding, name it in the source: `encoding = "cp1252"`.'


def usable_share(database: duckdb.DuckDBPyConnection, value: Value, column: str, texts: str) -> float:
    """Share of the `texts`, a query with this `column`, that have a value; 0 if there are none."""
    fault = value.fault.format(x=column, v="v")
    read = f"SELECT {column}, {value.value} AS v FROM ({texts})"
    return float(value_of(database, f"SELECT coalesce(avg(CAST(NOT ({fault}) AS DOUBLE)), 0) FROM ({read})"))


def find_unit(database: duckdb.DuckDBPyConnection, column: str, texts: str, latest_s: float) -> str | None:
    """The unit in which most of the `texts`, a query with this `column`, are plausible times.

    None if there is none, or if days and months cannot be told apart.
    """

    def fits(unit: str) -> bool:
        return usable_share(database, time_value(column, unit, latest_s), column, texts) >= MOST

    if (unit := next(filter(fits, (*UNITS, "ns", "days")), None)) is not None:
        return unit
    fitting = list(filter(fits, WRITTEN_DAYS))
    return fitting[0] if len(fitting) == 1 else None


def _lacks(rows: Rows, name: str, form: Form) -> str:
    published = next((theirs for theirs, ours in form.rename.items() if ours == name), name)
    found = ", ".join(repr(column) for column in rows.names)
    where = "the first line has" if rows.split.startswith("split") else "the file has"
    return f"{rows.file}: {where} no column {published!r}; {rows.split} {found}. {form.advice}"
