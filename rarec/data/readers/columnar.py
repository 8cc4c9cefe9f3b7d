"""Parquet files: every column as text, so that the same rules apply as to text files."""

from pathlib import Path

import duckdb
import numpy as np

from rarec.data.readers.connection import numbered, parquet_scan, quoted, value_of
from rarec.data.readers.rows import Rows
from rarec.errors import InputError, one_line
from rarec.types import IntArray

EXACT = {"FLOAT": 2**24, "DOUBLE": 2**53}  # whole numbers below are exact in this type


def read_parquet(database: duckdb.DuckDBPyConnection, path: Path, name: str, table: str) -> Rows:
    """Read a file into a new table. A line is a row, counted from 1.

    Times become ISO text in UTC. A missing value turns whole numbers into floats, so 17.0 becomes 17.

    Raises:
        InputError: The file is incomplete.
        OSError, MemoryError: This machine cannot read the file now.
    """
    source = parquet_scan(path)
    try:
        described = database.sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
        names, types = tuple(row[0] for row in described), tuple(row[1] for row in described)
        columns = "".join(
            f", coalesce({_as_text(quoted(column), kind)}, '') AS c{place}"
            for place, (column, kind) in enumerate(zip(names, types, strict=True))
        )
        database.execute(f"DROP TABLE IF EXISTS {table}")
        database.execute(f"CREATE TABLE {table} AS SELECT row_number() OVER () - 1 AS n{columns} FROM {source}")
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(one_line(error)) from error
    except duckdb.Error as error:
        with path.open("rb") as stream:  # raises if it is the system that cannot read it
            stream.read(1)
        raise InputError(f"{name}: not a complete parquet file ({one_line(error)[:200]}).") from error
    count = value_of(database, f"SELECT count(*) FROM {table}")

    def texts(lines: IntArray) -> list[str]:
        joined = ", ".join(f"c{place}" for place in range(len(names)))
        query = numbered(database, table, f"concat_ws(',', {joined})", np.asarray(lines) - 1)
        return [str(text) for (text,) in database.sql(query).fetchall()]

    return Rows(name, table, names, types, count, [], lambda n: np.asarray(n) + 1, texts)


def _as_text(column: str, kind: str) -> str:
    """SQL for the value as text; NULL where it is missing."""
    if kind == "VARCHAR":
        return column
    if kind in EXACT:
        whole = f"isfinite({column}) AND trunc({column}) = {column} AND abs({column}) < {EXACT[kind]}"
        return (
            f"CASE WHEN {whole} THEN CAST(CAST({column} AS BIGINT) AS VARCHAR) WHEN NOT isnan({column}) "
            f"THEN CAST({column} AS VARCHAR) END"
        )
    if kind == "BLOB":
        return f"coalesce(try(decode({column})), CAST({column} AS VARCHAR))"  # bytes that are no text, like \\xAB
    if kind.startswith("TIMESTAMP") and "TIME ZONE" not in kind:
        return f"CAST(CAST({column} AS TIMESTAMP) AS VARCHAR)"
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return f"CAST(to_json({column}) AS VARCHAR)"
    return f"CAST({column} AS VARCHAR)"
