"""Files of objects: JSON lines, a JSON array, and Python literals as Amazon published them in 2014."""

import ast
import json
import re
from collections.abc import Collection
from pathlib import Path

import duckdb
import numpy as np

from rarec.data.quarantine import SHOWN
from rarec.data.readers.connection import file_literal, literal, numbered, value_of
from rarec.data.readers.delimited import LONGEST_LINE, NOTHING
from rarec.data.readers.rows import NOT_UTF8, Rows, blank_lines, line_texts
from rarec.data.readers.text import EmptyFile, TextFile, new_copy, plain
from rarec.errors import InputError, one_line
from rarec.types import IntArray

NO_OBJECT = "not one object per line"
BETWEEN = "\x01"  # neither JSON nor a literal contains it, so every line is one value


def coarse(text: str) -> str:
    """A form of an id that all its spellings share; other ids may share it, too."""
    return text.strip().upper().split(".")[0].lstrip("+0")


def first_object(file: TextFile) -> str:
    """The first text of the file that is not blank."""
    with file.open() as stream:
        return stream.read(1 << 16).decode("utf-8-sig", errors="replace").lstrip()


def read_records(
    database: duckdb.DuckDBPyConnection,
    file: TextFile,
    table: str,
    scratch: Path,
    most: int,
    key: str = "",
    wanted: Collection[str] | None = None,
) -> Rows:
    """Read a file of objects into a new table, one column for each key. Structures stay JSON.

    Args:
        database: Where the table goes.
        file: The file.
        table: Its name.
        scratch: Folder for temporary files.
        most: Number of bad rows above which the file is of no use, so that only the first ones are looked at.
        key: Key of the objects' ids.
        wanted: Ids of the objects of interest, in the form of `coarse`. Other objects may be left out without being
            parsed.

    Raises:
        InputError: The file is no JSON, or is one object that holds all rows.
    """
    first = first_object(file)
    if first.startswith("[") and not _is_lines(first):
        return _read_array(database, file, table)
    if not first.startswith(("{", "[")):
        raise InputError(f"{file.name}: the file is not JSON, as it does not begin with an object or a list.")
    source = file
    if not _is_json(first.split("\n", 1)[0]):
        source = _as_json(file, scratch, key, wanted)
    database.execute("DROP TABLE IF EXISTS objects; DROP TABLE IF EXISTS rejects; DROP TABLE IF EXISTS scans")
    options = (
        f"columns={{'line': 'VARCHAR'}}, auto_detect=false, header=false, delim='{BETWEEN}', quote='', escape='', "
        f"compression='{source.compression}', max_line_size={LONGEST_LINE}, nullstr='{NOTHING}', store_rejects=true, "
        "rejects_table='rejects', rejects_scan='scans'"
    )
    lines = f"SELECT row_number() OVER () - 1 AS n, line FROM read_csv({file_literal(source.path)}, {options})"
    good = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END"
    database.execute(f"CREATE TABLE objects AS SELECT n, line, {good} AS good FROM ({lines})")
    # Kind of fault of each bad line: 0 in encoding, 1 in form.
    found = database.sql(
        "SELECT line, max(error_type::VARCHAR != 'INVALID ENCODING') AS kind FROM rejects GROUP BY 1 ORDER BY 1"
    ).fetchnumpy()
    rejected = np.asarray(found["line"], dtype=np.int64)
    kept = np.delete(np.arange(1, file.lines + 1), rejected - 1)
    if value_of(database, "SELECT count(*) FROM objects") != len(kept):  # DuckDB leaves empty lines out
        kept = np.setdiff1d(kept, blank_lines(plain(source, scratch).path))
    wrong = database.sql("SELECT n FROM objects WHERE NOT good AND trim(line) != '' ORDER BY n").fetchnumpy()["n"]
    numbers = np.concatenate([rejected, kept[np.asarray(wrong, dtype=np.int64)]])
    kinds = np.concatenate([np.asarray(found["kind"], dtype=bool), np.ones(len(wrong), dtype=bool)])
    shown = np.argsort(numbers)[: SHOWN if len(numbers) > most else None]

    def texts(lines: IntArray) -> list[str]:
        return line_texts(plain(file, scratch).path, lines)

    bad = [
        (line, NO_OBJECT if kind else NOT_UTF8, text)
        for line, kind, text in zip(numbers[shown].tolist(), kinds[shown].tolist(), texts(numbers[shown]), strict=True)
    ]
    names = _keys(database, "SELECT n, line FROM objects WHERE good")
    if not names:
        raise InputError(
            f"{file.name}: no line holds an object, though the file begins like one; write one object per line. It "
            f"begins with {first[:80]!r}."
        )
    _refuse_one_object(database, file)
    _spread(database, table, names, "SELECT n, line FROM objects WHERE good")
    count = value_of(database, f"SELECT count(*) FROM {table}")
    types = ("JSON",) * len(names)
    unseen = len(numbers) - len(bad)
    return Rows(
        file=file.name,
        table=table,
        names=names,
        types=types,
        total=count + len(numbers),
        bad=bad,
        unseen=unseen,
        lines=lambda n: kept[n],
        texts=texts,
    )


def _refuse_one_object(database: duckdb.DuckDBPyConnection, file: TextFile) -> None:
    """Raise InputError if the only object holds all rows, as pandas writes a frame by default."""
    whole = database.sql("SELECT line FROM objects WHERE good LIMIT 2").fetchall()
    if len(whole) != 1:
        return
    values = list(json.loads(whole[0][0]).values())
    if any(isinstance(value, list | dict) and len(value) > 1 for value in values) and not any(
        isinstance(value, str | int | float) for value in values
    ):
        raise InputError(
            f"{file.name}: the file is one object that holds all rows; write one object per row, with pandas "
            "`to_json(..., orient='records', lines=True)`."
        )


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _is_lines(text: str) -> bool:
    """Whether a text that begins with a list is a line of its own, followed by objects."""
    first, _, rest = text.partition("\n")
    return _is_json(first) and rest.lstrip().startswith("{")


def _as_json(file: TextFile, scratch: Path, key: str, wanted: Collection[str] | None) -> TextFile:
    """A copy in which every line that is a Python literal is JSON instead. Other lines stay as they are."""
    copy = new_copy(scratch)
    # Parsing a literal takes a hundred times as long as this search. Lines without a match are parsed.
    pattern = re.compile(rb"u?['\"]" + re.escape(key.encode()) + rb"['\"]: u?['\"]([^'\"\\]*)['\"]") if key else None
    with plain(file, scratch).path.open("rb") as lines, copy.open("wb") as out:
        for raw in lines:
            line = raw.strip()
            found = pattern.search(line) if pattern and wanted is not None else None
            foreign = found and wanted is not None and coarse(found[1].decode(errors="replace")) not in wanted
            out.write((b"" if foreign else _json_of(line)) + b"\n")
    return TextFile(file.name, copy, "none", file.lines)


def _json_of(line: bytes) -> bytes:
    if not line:
        return line
    try:
        found = ast.literal_eval(line.decode("utf-8", errors="replace"))
        return json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    # literal_eval and dumps may raise any of these.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return line


def _read_array(database: duckdb.DuckDBPyConnection, file: TextFile, table: str) -> Rows:
    database.execute("DROP TABLE IF EXISTS objects")
    try:
        database.execute(
            "CREATE TABLE objects AS SELECT row_number() OVER () - 1 AS n, json AS line FROM "
            f"read_json_objects({file_literal(file.path)}, format='array', compression='{file.compression}', "
            f"maximum_object_size={LONGEST_LINE})"
        )
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(one_line(error)) from error
    except duckdb.Error as error:
        raise InputError(f"{file.name}: the file is not valid JSON: {one_line(error)[:200]}") from error
    good = "SELECT n, line FROM objects WHERE json_type(line) = 'OBJECT'"
    wrong = database.sql("SELECT n, line FROM objects WHERE json_type(line) != 'OBJECT' ORDER BY n").fetchall()
    names = _keys(database, good)
    if not names:
        raise EmptyFile(f"{file.name}: the list holds no objects; write one object per row.")
    _spread(database, table, names, good)
    count = value_of(database, "SELECT count(*) FROM objects")

    def texts(lines: IntArray) -> list[str]:
        found = database.sql(numbered(database, "objects", "line", np.asarray(lines) - 1)).fetchall()
        return [str(text) for (text,) in found]

    bad = [(int(n) + 1, "not an object", str(text)) for n, text in wrong]
    return Rows(file.name, table, names, ("JSON",) * len(names), count, bad, lambda n: np.asarray(n) + 1, texts)


def _keys(database: duckdb.DuckDBPyConnection, objects: str) -> tuple[str, ...]:
    """All keys, in the order in which they first occur."""
    found = database.sql(
        "SELECT key FROM (SELECT n, unnest(keys) AS key, generate_subscripts(keys, 1) AS place FROM "
        f"(SELECT n, json_keys(line) AS keys FROM ({objects}))) GROUP BY key ORDER BY min(n * 100000 + place)"
    ).fetchall()
    return tuple(str(key) for (key,) in found)


def _spread(database: duckdb.DuckDBPyConnection, table: str, names: tuple[str, ...], objects: str) -> None:
    """A table with a column for each key."""
    pointers = ", ".join(literal("/" + name.replace("~", "~0").replace("/", "~1")) for name in names)
    columns = "".join(f", found[{place}] AS c{place - 1}" for place in range(1, len(names) + 1))
    found = f"json_extract_string(line, [{pointers}])" if names else "[]"
    database.execute(f"DROP TABLE IF EXISTS {table}")
    database.execute(f"CREATE TABLE {table} AS SELECT n{columns} FROM (SELECT n, {found} AS found FROM ({objects}))")
