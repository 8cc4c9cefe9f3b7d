"""`make dataset FILE=...`: look into files and write the declaration of a data set, with comments on what to decide."""

import argparse
import json
import os
import re
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
from pydantic import ValidationError

from rarec.data.formats.published import KEYS, by_alias
from rarec.data.formats.table import MOST, Reading, find_unit, read_rows
from rarec.data.formats.values import AHEAD_S, number_value
from rarec.data.quarantine import Quarantine
from rarec.data.raw import RawTables, read_raw
from rarec.data.readers.connection import connection, row_of, value_of
from rarec.data.readers.rows import Rows
from rarec.data.source_spec import Role, SourceSpec
from rarec.data.sources.files import find_files
from rarec.data.spec import DatasetSpec
from rarec.data.templates import TEMPLATES
from rarec.errors import InputError, one_line

MOST_RATINGS = 101  # different values of a rating; more are a measure of something else
LOOKED_AT = 100_000  # rows
TELLING = 0.8  # share of different values from which a column may be a title
SHOWN_LIST = r"\S+-[01]( \S+-[01])*"


@dataclass(frozen=True)
class Found:
    """What was found in the files of one role.

    Attributes:
        columns: Published column -> ours, for columns whose own names do not say it.
        fields: Further settings of the source.
        ratings: Lowest and highest rating; None without ratings.
        has_time: Whether there is a time.
    """

    columns: dict[str, str]
    fields: dict[str, Any]
    ratings: tuple[float, float] | None = None
    has_time: bool = False


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
    columns = {}
    if not known and all(name.isdecimal() for name in rows.names):
        fields = {**fields, "header": False}
        columns = _by_content(database, rows, role)
    there = (*known.values(), *columns.values(), *rows.names, *(("item_id",) if "clicks" in columns.values() else ()))
    missing = [key for key in KEYS[role] if key not in there]
    if missing:
        raise InputError(
            f"{rows.file}: no column looks like {missing[0]}; it has {', '.join(map(repr, rows.names))}. Write the "
            f"declaration by hand, with `columns.{role}`."
        )
    ours = known | columns
    by_ours = {target: name for name, target in ours.items()}
    ratings, unit = None, None
    if role == "interactions":
        if "rating" in by_ours:
            value = number_value(rows.column(by_ours["rating"]), -np.inf, np.inf).value
            low, high = row_of(database, f"SELECT min(v), max(v) FROM (SELECT {value} AS v FROM {rows.table})")
            ratings = None if low is None or not low < high else (float(low), float(high))
        if "timestamp" in by_ours:
            unit = _unit(database, rows, by_ours["timestamp"])
            if unit and unit != "s":
                fields = {**fields, "time_unit": unit}
    return Found(columns, fields, ratings, "timestamp" in by_ours)


def _unit(database: duckdb.DuckDBPyConnection, rows: Rows, name: str) -> str | None:
    """The unit in which most values of a column are plausible times; None if there is none."""
    column = rows.column(name)
    return find_unit(database, column, f"SELECT {column} FROM {rows.table} LIMIT {LOOKED_AT}", time.time() + AHEAD_S)


def _by_content(database: duckdb.DuckDBPyConnection, rows: Rows, role: Role) -> dict[str, str]:
    """Columns of a file without names, by what they hold: ids come first, then a rating and a time."""
    if role != "interactions":
        key, *others = rows.names
        title = next((name for name in others if _different(database, rows, name) >= TELLING), None)
        return {key: KEYS[role][0], **({title or others[0]: "title"} if role == "items" and others else {})}
    lists = [name for name in rows.names if _holds_lists(database, rows, name)]
    if lists:  # the first column may number the lists
        others = [name for name in rows.names if name not in lists and _different(database, rows, name) < 1]
        columns = dict(zip(others, KEYS[role][:1], strict=False)) | {lists[0]: "clicks"}
    else:
        columns = dict(zip(rows.names, KEYS[role], strict=False))
    for name in [name for name in rows.names if name not in columns]:
        value = number_value(rows.column(name), -np.inf, np.inf).value
        numbers, different = row_of(
            database, f"SELECT count(v) = count(*), count(DISTINCT v) FROM (SELECT {value} AS v FROM {rows.table})"
        )
        if "timestamp" not in columns.values() and _unit(database, rows, name):
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


def declaration(name: str, files: dict[Role, str], found: dict[Role, Found]) -> str:
    """The TOML of a data set, with comments on what its owner should decide.

    Args:
        name: The data set's name.
        files: Names of the files, as in its folder.
        found: What is in them.
    """
    events = found["interactions"]
    lines = [
        f'name = "{name}"',
        f'title = "{name}"                # its name in reports',
        f'domain = "products"         # the wording of prompts: {", ".join(TEMPLATES)}; others need a [template]',
    ]
    if events.ratings:
        low, high = events.ratings
        lines += [
            f"rating_scale = [{low:g}, {high:g}]       # found; set the scale's ends if it goes further",
            f"label_threshold = {(low + high) / 2:g}         # a rating above it counts as a like",
        ]
    if not events.has_time:
        lines.append('time = "none"               # no column of times was found: the order is drawn by chance')
    lines += [
        'duplicates = "keep-last"    # or "keep-all", or "error": a user may meet an item again',
        'unknown_items = "drop"      # or "error": interactions whose item is not in the item file',
        'short_users = "train-only"  # or "error": users with fewer than three interactions',
        "# k_core = 5                # every user and item keeps at least this many interactions",
        "",
        "[[sources]]",
        'format = "table"',
        f"files = {{ {', '.join(f'{role} = {_toml(file)}' for role, file in files.items())} }}",
    ]
    for role, one in found.items():
        if {**one.fields, "time_unit": ""} != {**events.fields, "time_unit": ""} and role != "interactions":
            raise InputError(
                f"{files[role]}: its encoding or header is unlike that of {files['interactions']}, and one source has "
                "one of each; save them alike."
            )
    lines += [f"{key} = {_toml(value)}" for key, value in events.fields.items()]
    if "clicks" in events.columns.values():
        lines.append('# "clicks" are the entries of each list with -1; "impressions" are all of them, rated 1 or 0')
    for role, one in found.items():
        if one.columns:
            pairs = ", ".join(f"{_toml(name)} = {_toml(ours)}" for name, ours in one.columns.items())
            lines.append(f"columns.{role} = {{ {pairs} }}  # by content: check them")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A text, number or truth value in TOML."""
    return json.dumps(value, ensure_ascii=False)


def check(text: str, folder: Path) -> RawTables:
    """Read the files in `folder` as the declaration says, however many rows are bad."""
    try:
        spec = DatasetSpec.model_validate(tomllib.loads(text) | {"quarantine_limit": 1.0})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"no declaration fits these files ({one_line(error)}); write it by hand") from error
    return read_raw(spec, folder)


def slug(text: str) -> str:
    """A name for a data set."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "own"


def main() -> None:
    """Look into the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="interactions: a file, a folder of parts, or a quoted pattern")
    parser.add_argument("--items", default="", help="file of items in the same folder")
    parser.add_argument("--users", default="", help="file of users in the same folder")
    parser.add_argument("--name", default="", help="name of the data set (default: that of the files' folder)")
    home = Path(os.environ.get("RAREC_HOME", "").strip() or ".rarec").expanduser()
    parser.add_argument(
        "--datasets", type=Path, default=home / "datasets", help="where to write (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        print(write(arguments.file, arguments.items, arguments.users, arguments.name, arguments.datasets))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def write(file: Path, items: str, users: str, name: str, datasets: Path) -> str:
    """Look into the files, write `<datasets>/<name>.toml`, and return what was found.

    Raises:
        InputError: A file cannot be read, or there is such a declaration already.
    """
    if not file.name:
        raise InputError("name the file of interactions: make dataset FILE=<file>")
    folder = file.expanduser().absolute().parent
    name = slug(name or folder.name)
    target = datasets / f"{name}.toml"
    if target.exists():
        raise InputError(f"{target} exists; remove it, or choose another name with NAME=...")
    named: dict[Role, str] = {"interactions": file.name, "items": items, "users": users}
    files: dict[Role, str] = {role: one for role, one in named.items() if one}
    found = {}
    for role, one in files.items():
        paths = find_files(folder, one)
        if not paths:
            raise InputError(f"{folder / one}: there is no such file.")
        found[role] = look_into(role, paths[0])
    text = declaration(name, files, found)
    raw = check(text, folder)
    bad = len(raw.quarantine)
    of_events = [source["file"] for source in raw.sources if source["role"] == "interactions"]
    whole = raw.count + int(raw.quarantine["file"].isin(of_events).sum())
    lines = [f"{raw.count:,} of {whole:,} interactions can be read."]
    lines += [f"  {row.file}, line {row.line}: {row.reason}" for row in raw.quarantine.head(3).itertuples(index=False)]
    lines += [f"  … and {bad - 3:,} more rows" if bad > 3 else ""] + [f"  {sentence}" for sentence in raw.warnings]
    datasets.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    place = f"RAREC_DATA={folder.parent}" if folder.name == name else f"the files in a folder {name}/ under RAREC_DATA"
    lines += [
        f"Written: {target}. Look at its comments, then run",
        f"  make run DATASET={name} TRACK=raserec ({place})",
    ]
    return "\n".join(filter(None, lines))


if __name__ == "__main__":
    main()
