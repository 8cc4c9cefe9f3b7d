"""`make dataset FILE=...`: look into files and write the declaration of a data set, with comments on what to decide."""

import argparse
import json
import os
import re
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
from pydantic import ValidationError

from rarec.config import refusals
from rarec.data.formats.published import ALIASES, KEYS, by_alias, candidates
from rarec.data.formats.table import MOST, Reading, find_unit, read_rows, usable_share
from rarec.data.formats.values import AHEAD_S, NOTHING, id_value, number_value
from rarec.data.quarantine import Quarantine
from rarec.data.raw import RawTables, read_raw
from rarec.data.readers.connection import connection, row_of, value_of
from rarec.data.readers.rows import Rows
from rarec.data.source_spec import Role, SourceSpec
from rarec.data.sources.files import find_files
from rarec.data.spec import DatasetSpec
from rarec.data.tables import build_tables, cleaned
from rarec.data.templates import TEMPLATES
from rarec.errors import InputError

MOST_RATINGS = 101  # different values of a rating; more are a measure of something else
LOOKED_AT = 100_000  # rows
FILLED = 0.99  # share of ids that are there from which a column of ids is taken
TELLING = 0.8  # share of different values from which a column may be a title
SHOWN_LIST = r"\S+-[01]( \S+-[01])*"


@dataclass(frozen=True)
class Found:
    """What was found in the files of one role.

    Attributes:
        columns: Published column -> ours, for columns whose own names do not say it.
        fields: Further settings of the source.
        ratings: Lowest and highest rating; None without ratings.
        lowest_above: Lowest rating but for the very lowest.
        has_time: Whether there is a time.
        unused: Columns that mean nothing here.
    """

    columns: dict[str, str]
    fields: dict[str, Any]
    ratings: tuple[float, float] | None = None
    lowest_above: float = 0
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
    ratings, lowest_above = None, 0.0
    if role == "interactions":
        if "rating" in by_ours:
            value = number_value(rows.column(by_ours["rating"]), -np.inf, np.inf).value
            texts = f"SELECT v FROM (SELECT {value} AS v FROM {rows.table}) WHERE isfinite(v)"
            low, high = row_of(database, f"SELECT min(v), max(v) FROM ({texts})")
            if low is not None and low < high:
                ratings = (float(low), float(high))
                lowest_above = float(value_of(database, f"SELECT min(v) FROM ({texts}) WHERE v > {low!r}"))
        if "timestamp" in by_ours:
            unit = _unit(database, rows, by_ours["timestamp"])
            if unit and unit != "s":
                fields = {**fields, "time_unit": unit}
    unused = tuple(name for name in rows.names if name and name not in ours and name not in ALIASES[role])
    return Found(columns, fields, ratings, lowest_above, "timestamp" in by_ours, unused)


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
        others.sort(key=lambda name: not re.search("date|time|day", name.lower()))
        time = next((name for name in others if _unit(database, rows, name)), None)
        columns |= {} if time is None else {time: "timestamp"}
    return columns


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
    settings = [
        (f'title = "{name}"', "its name in reports"),
        ('domain = "products"', f"the wording of prompts: {', '.join(TEMPLATES)}; others need a [template]"),
    ]
    lines = [f'name = "{name}"']
    if events.ratings:
        low, high = events.ratings
        middle = (low + high) / 2
        settings += [
            (f"rating_scale = [{low:g}, {high:g}]", "found; set the scale's ends if it goes further"),
            (f"label_threshold = {middle:g}", "a rating above it counts as a like"),
        ]
        if low == 0 and events.lowest_above >= 1:
            least = f"{events.lowest_above:g}"
            settings.append(("# implicit_rating = 0", f"if 0 means no rating; then rating_scale = [{least}, {high:g}]"))
    if not events.has_time:
        settings.append(('time = "none"', "no column of times was found: the order is drawn by chance"))
    settings.append(('duplicates = "keep-last"', 'or "keep-all", or "error": a user may meet an item again'))
    if "items" in files:
        settings.append(('unknown_items = "drop"', 'or "error": interactions whose item is not in the item file'))
    settings.append(('short_users = "train-only"', 'or "error": users with fewer than three interactions'))
    settings.append(("# k_core = 5", "every user and item keeps at least this many interactions"))
    lines += [f"{setting:<27}  # {comment}" for setting, comment in settings]
    lines += [
        "",
        "[[sources]]",
        'format = "table"',
        f"files = {{ {', '.join(f'{role} = {_toml(file)}' for role, file in files.items())} }}",
    ]
    lines += [f"{key} = {_toml(value)}" for key, value in _common(found).items()]
    if "clicks" in events.columns.values():
        lines.append('# "clicks" are the entries of each list with -1; "impressions" are all of them, rated 1 or 0')
    for role, one in found.items():
        if one.columns:
            pairs = ", ".join(f"{_toml(name)} = {_toml(ours)}" for name, ours in one.columns.items())
            lines.append(f"columns.{role} = {{ {pairs} }}  # by content: check them")
        if one.unused:
            lines.append(f"# not used of {files[role]}: {', '.join(map(_toml, one.unused))}")
    return "\n".join(lines) + "\n"


def _common(found: dict[Role, Found]) -> dict[str, Any]:
    """Settings of the source, which hold for all files: a file that is UTF-8 throughout is read as such anyway."""
    fields: dict[str, Any] = {}
    for one in found.values():
        fields |= one.fields
    if not all("header" in one.fields for one in found.values()):
        fields.pop("header", None)  # it is recognised
    return fields


def _toml(value: object) -> str:
    """A text, number or truth value in TOML."""
    return json.dumps(value, ensure_ascii=False)


def check(text: str, folder: Path) -> tuple[DatasetSpec, RawTables]:
    """The data set, and its files as the declaration reads them, however many rows are bad."""
    try:
        spec = DatasetSpec.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        words = refusals(error, known=DatasetSpec.model_fields) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"no declaration fits these files ({words}); write it by hand") from error
    return spec, read_raw(spec.model_copy(update={"quarantine_limit": 1.0}), folder)


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
    if "*" in str(folder):
        raise InputError(f"{file}: a pattern may stand for names only; name the folder, and its parts are found.")
    name = slug(name or folder.name)
    target = datasets / f"{name}.toml"
    if target.exists():
        raise InputError(f"{target} exists; remove it, or choose another name with NAME=...")
    named: dict[Role, str] = {"interactions": file.name, "items": items, "users": users}
    files: dict[Role, str] = {role: _inside(folder, one) for role, one in named.items() if one}
    found = {}
    for role, one in files.items():
        paths = find_files(folder, one)
        if not paths:
            raise InputError(f"{folder / one}: there is no such file.")
        found[role] = look_into(role, paths[0])
    text = declaration(name, files, found)
    spec, raw = check(text, folder)
    datasets.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    lines = [*_told(spec, raw), f"Written: {target}. Look at its comments, then run"]
    lines.append(f"  make run DATASET={name} TRACK=raserec RAREC_DATA={folder.parent}")
    if folder.name != name:
        lines.append(f"with the files in {folder.parent / name}")
    return "\n".join(lines)


def _inside(folder: Path, name: str) -> str:
    """The name of a file as seen from the folder.

    Raises:
        InputError: It is elsewhere.
    """
    path = Path(os.path.relpath(folder / Path(name).expanduser(), folder))
    if ".." in path.parts:
        raise InputError(f"{name}: the file must be in {folder}, beside that of the interactions, or in a sub-folder.")
    return str(path)


def _told(spec: DatasetSpec, raw: RawTables) -> Iterator[str]:
    """What was read of the files and what remains of it, and what stands against a run."""
    of_role = {str(source["file"]): str(source["role"]) for source in raw.sources}
    bad = raw.quarantine.assign(role=raw.quarantine["file"].map(of_role))
    read = {role: sum(one["rows"] for one in raw.sources if one["role"] == role) for role in of_role.values()}
    for role in dict.fromkeys(of_role.values()):
        rows = bad[bad["role"] == role]
        whole = read[role] + len(rows)
        yield f"{read[role]:,} of {whole:,} {'interactions' if role == 'interactions' else role} can be read."
        yield from (f"  {row.file}, line {row.line}: {row.reason}" for row in rows.head(3).itertuples(index=False))
        if len(rows) > 3:
            yield f"  … and {len(rows) - 3:,} more rows"
        if len(rows) > spec.quarantine_limit * whole:
            yield (
                f"  A run refuses this, as at most {spec.quarantine_limit:.0%} of the rows may be bad: correct the "
                "columns or the file, or set `quarantine_limit`."
            )
    yield from (f"  {sentence}" for sentence in raw.warnings)
    try:
        counts = build_tables(spec, raw).counts
    except InputError as error:
        yield f"A run refuses this: {error}"
        return
    yield f"Of these, {cleaned(counts)}."


if __name__ == "__main__":
    main()
