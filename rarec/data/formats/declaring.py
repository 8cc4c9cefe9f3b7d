"""`make dataset FILE=...`: write a data set's declaration, with comments on what to decide, and say what it reads."""

import argparse
import json
import os
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rarec.config import refusals
from rarec.data.formats.looking import Found, look_into
from rarec.data.quarantine import SHOWN
from rarec.data.raw import RawTables, read_raw
from rarec.data.readers.connection import connection, parquet_scan, row_of
from rarec.data.source_spec import Role
from rarec.data.sources.files import find_files
from rarec.data.spec import DatasetSpec
from rarec.data.tables import build_tables, cleaned
from rarec.data.templates import TEMPLATES
from rarec.errors import InputError


def declaration(
    name: str, files: dict[Role, str], found: dict[Role, Found], ratings: tuple[float, float, float] | None = None
) -> str:
    """The TOML of a data set, with comments on what its owner should decide.

    Args:
        name: The data set's name.
        files: Names of the files, as in its folder.
        found: What is in them.
        ratings: Lowest and highest rating, and the lowest but one.
    """
    events = found["interactions"]
    settings = [
        (f'title = "{name}"', "its name in reports"),
        ('domain = "products"', f"the wording of prompts: {', '.join(TEMPLATES)}; others need a [template]"),
    ]
    lines = [f'name = "{name}"']
    if ratings:
        low, high, second = ratings
        middle = (low + high) / 2
        settings += [
            (f"rating_scale = [{low:g}, {high:g}]", "found; set the scale's ends if it goes further"),
            (f"label_threshold = {middle:g}", "a rating above it counts as a like"),
        ]
        if low == 0 and second >= 1:
            settings.append(
                ("# implicit_rating = 0", f"if 0 means no rating; then rating_scale = [{second:g}, {high:g}]")
            )
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
    spec, raw = check(declaration(name, files, found), folder)
    ratings = _ratings(raw)
    text = declaration(name, files, found, ratings)
    datasets.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    lines = [*_findings(spec, raw), f"Written: {target}. Look at its comments, then run"]
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


def _ratings(raw: RawTables) -> tuple[float, float, float] | None:
    """Lowest and highest rating, and the lowest but one; None if there are not two."""
    with connection() as database:
        query = f"({raw.published_query})"
        if "rating" not in {name for name, *_ in database.sql(f"DESCRIBE SELECT * FROM {query}").fetchall()}:
            return None
        rated = f"(SELECT rating FROM {query} WHERE isfinite(rating))"
        found = row_of(
            database,
            f"SELECT min(rating), max(rating), min(rating) FILTER (rating > (SELECT min(rating) FROM {rated})) "
            f"FROM {rated}",
        )
    return None if found[2] is None else found


def _findings(spec: DatasetSpec, raw: RawTables) -> Iterator[str]:
    """What was read of the files and what remains of it, and what stands against a run."""
    of_role = {str(source["file"]): str(source["role"]) for source in raw.sources}
    bad = raw.quarantine.assign(role=raw.quarantine["file"].map(of_role))
    read = {role: sum(one["rows"] for one in raw.sources if one["role"] == role) for role in of_role.values()}
    for role in dict.fromkeys(of_role.values()):
        rows = bad[bad["role"] == role]
        whole = read[role] + len(rows)
        yield f"{read[role]:,} of {whole:,} {role} can be read."
        yield from (f"  {row.file}, line {row.line}: {row.reason}" for row in rows.head(SHOWN).itertuples(index=False))
        if len(rows) > SHOWN:
            yield f"  … and {len(rows) - SHOWN:,} more rows"
        if len(rows) > spec.quarantine_limit * whole:
            yield (
                f"  A run refuses this, as at most {spec.quarantine_limit:.0%} of the rows may be bad: correct the "
                "columns or the file, or set `quarantine_limit`."
            )
    yield from (f"  {sentence}" for sentence in raw.warnings)
    try:
        tables = build_tables(spec, raw)
    except InputError as error:
        yield f"A run refuses this: {error}"
        return
    yield f"Of these, {cleaned(tables.counts)}."
    if tables.time == "clock":
        with connection() as database:
            events = parquet_scan(tables.folder / "interactions.parquet")
            ends = row_of(database, f"SELECT min(timestamp), max(timestamp) FROM {events}")
        first, last = (datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d") for end in ends)
        yield f"Their times are from {first} to {last}."


if __name__ == "__main__":
    main()
