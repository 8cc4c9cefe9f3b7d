"""What a file seems to hold: which columns are ids, ratings and times, and in which unit."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np

from rarec.data.formats.published import ALIASES, KEYS, by_alias, candidates
from rarec.data.formats.table import MOST, Reading, find_unit, read_rows, usable_share
from rarec.data.formats.values import AHEAD_S, NOTHING, id_value, number_value
from rarec.data.quarantine import Quarantine
from rarec.data.readers.connection import connection, row_of, value_of
from rarec.data.readers.rows import Rows
from rarec.data.source_spec import Role, SourceSpec
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

MOST_RATINGS = 101  # different values of a rating; more are a measure of something else
LOOKED_AT = 100_000  # rows
OF_TIME = re.compile("date|time|day|stamp|when|created|_at$|^ts$")  # in names of columns
OF_OTHER_TIME = re.compile("birth|updat|modif|expir|release")
FILLED = 0.99  # share of ids that are there from which a column of ids is taken
TELLING = 0.8  # share of different values from which a column may be a title
SHOWN_LIST = r"\S+-[01]( \S+-[01])*"


@dataclass(frozen=True)
class Found:
    """What was found in the files of one role.

    Attributes:
        columns: Published column -> ours, for columns whose own names do not say it.
        fields: Further settings of the source.
        has_time: Whether there is a time.
        unused: Columns that mean nothing here.
    """

    columns: dict[str, str]
    fields: dict[str, Any]
    has_time: bool = False
    unused: tuple[str, ...] = ()


def look_into(role: Role, path: Path) -> Found:
    """What the first file of a role holds.

    Raises:
        InputError: It cannot be read, or has no columns that could be ids.
    """
    with TemporaryDirectory(prefix="rarec-looking-") as scratch, connection(Path(scratch)) as database:
        work = Path(scratch) / "files"
        work.mkdir()
        for encoding in ("utf-8", "cp1252"):
            source = SourceSpec(format="table", encoding=encoding)
            spec = DatasetSpec(name="any", title="any", domain="any", sources=(source,))
            reading = Reading(database, spec, source, role, Quarantine(1.0), work, time.time() + AHEAD_S)
            rows = read_rows(reading, path)
            if not any("utf-8" in reason for _, reason, _ in rows.bad):
                break
        fields = {} if encoding == "utf-8" else {"encoding": encoding}
        return _found(database, rows, role, fields)


def _found(database: duckdb.DuckDBPyConnection, rows: Rows, role: Role, fields: dict[str, Any]) -> Found:
    known = by_alias(role, rows.names)
    if not known and all(name.isdecimal() for name in rows.names):
        fields = {**fields, "header": False}
        columns = _by_content(database, rows, role)
    else:
        columns = _better_columns(database, rows, role, known)
    ours = {name: target for name, target in known.items() if target not in columns.values()} | columns
    by_ours = {target: name for name, target in ours.items()}
    lists = {"item_id"} if "clicks" in by_ours else set()
    missing = [key for key in KEYS[role] if key not in by_ours.keys() | set(rows.names) | lists]
    if missing:
        raise InputError(
            f"{rows.file}: no column looks like {missing[0]}; it has {', '.join(map(repr, rows.names))}. Write the "
            f"declaration by hand, with `columns.{role}`."
        )
    if role == "interactions" and "timestamp" in by_ours:
        unit = _unit(database, rows, by_ours["timestamp"])
        if unit and unit != "s":
            fields = {**fields, "time_unit": unit}
    unused = tuple(name for name in rows.names if name and name not in ours and name not in ALIASES[role])
    return Found(columns, fields, "timestamp" in by_ours, unused)


def _better_columns(
    database: duckdb.DuckDBPyConnection, rows: Rows, role: Role, known: dict[str, str]
) -> dict[str, str]:
    """Columns that fit better than those `known` by their names: ids that are not missing, and times by content."""
    columns = {}
    table = f"SELECT * FROM {rows.table} LIMIT {LOOKED_AT}"
    for key in KEYS[role]:
        shares = {}
        for name in candidates(role, key, rows.names):
            shares[name] = usable_share(database, id_value(rows.column(name), NOTHING), rows.column(name), table)
        best = next((name for name, share in shares.items() if share >= FILLED), None)
        best = best or max(shares, key=lambda name: shares[name], default=None)
        if best is not None and known.get(best) != key:
            columns[best] = key
    if role == "interactions" and "timestamp" not in known.values():
        others = [name for name in rows.names if name not in known and name not in columns]
        others.sort(key=lambda name: not OF_TIME.search(name.lower()))
        time = next((name for name in others if _is_time(database, rows, name)), None)
        columns |= {} if time is None else {time: "timestamp"}
    return columns


def _is_time(database: duckdb.DuckDBPyConnection, rows: Rows, name: str) -> bool:
    """Whether a column holds times by its content. A bare number is one only if the column's name says so."""
    if OF_OTHER_TIME.search(name.lower()):
        return False
    column = rows.column(name)
    different, numbers = row_of(
        database, f"SELECT count(DISTINCT {column}) > 1, bool_or(TRY_CAST({column} AS DOUBLE) > 0) FROM {rows.table}"
    )
    return bool(different and (not numbers or OF_TIME.search(name.lower())) and _unit(database, rows, name, False))


def _unit(database: duckdb.DuckDBPyConnection, rows: Rows, name: str, counted_days: bool = True) -> str | None:
    """The unit in which most values of a column are plausible times; None if there is none.

    Many numbers could be days counted since 1970, so these may be ruled out.
    """
    column = rows.column(name)
    texts = f"SELECT {column} FROM {rows.table} LIMIT {LOOKED_AT}"
    unit = find_unit(database, column, texts, time.time() + AHEAD_S)
    if unit == "days" and not counted_days:
        dates = value_of(database, f"SELECT bool_and(length(trim({column})) = 8) FROM ({texts})")
        return unit if dates else None
    return unit


def _by_content(database: duckdb.DuckDBPyConnection, rows: Rows, role: Role) -> dict[str, str]:
    """Columns of a file without names, by what they hold: ids come first, then a rating and a time."""
    if role != "interactions":
        key, *others = rows.names
        title = next((name for name in others if _different(database, rows, name) >= TELLING), None)
        return {key: KEYS[role][0], **({title or others[0]: "title"} if role == "items" and others else {})}
    lists = [name for name in rows.names if _holds_lists(database, rows, name)]
    if lists:  # the first column may number the lists
        numbered = _different(database, rows, rows.names[0]) == 1
        others = [name for name in rows.names[numbered:] if name not in lists]
        columns = dict(zip(others, KEYS[role][:1], strict=False)) | {lists[0]: "clicks"}
    else:
        columns = dict(zip(rows.names, KEYS[role], strict=False))
    for name in [name for name in rows.names if name not in columns]:
        value = number_value(rows.column(name), -np.inf, np.inf).value
        numbers, different = row_of(
            database, f"SELECT count(v) = count(*), count(DISTINCT v) FROM (SELECT {value} AS v FROM {rows.table})"
        )
        if "timestamp" not in columns.values() and _unit(database, rows, name, counted_days=False):
            columns[name] = "timestamp"
        elif numbers and different <= MOST_RATINGS and not lists and "rating" not in columns.values():
            columns[name] = "rating"
    return columns


def _holds_lists(database: duckdb.DuckDBPyConnection, rows: Rows, name: str) -> bool:
    """Whether most values of a column are lists of what a user was shown."""
    share = value_of(
        database,
        f"SELECT avg(regexp_full_match({rows.column(name)}, '{SHOWN_LIST}')::INT) FROM "
        f"(SELECT * FROM {rows.table} LIMIT {LOOKED_AT})",
    )
    return share is not None and share >= MOST


def _different(database: duckdb.DuckDBPyConnection, rows: Rows, name: str) -> float:
    """Share of the values of a column that differ from each other."""
    return float(
        value_of(database, f"SELECT coalesce(count(DISTINCT {rows.column(name)}) / count(*), 0) FROM {rows.table}")
    )
