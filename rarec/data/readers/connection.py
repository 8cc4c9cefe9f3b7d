"""DuckDB connections: bounded memory, spilling to disk, no access to the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import psutil
import pyarrow as pa

from rarec.types import IntArray

LARGEST_MEMORY = 3 << 30  # bytes; sorts and joins of more spill to disk
MEMORY_SHARE = 0.4  # of what the machine has


_OFFLINE = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}


@contextmanager
def in_memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory for many small files, one after the other: opening one for each takes longer than a file."""
    with duckdb.connect(":memory:", config={"threads": 1, **_OFFLINE}) as database:
        database.execute("SET TimeZone = 'UTC'")
        yield database


@contextmanager
def emptied(database: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database, from which every table is gone afterwards."""
    try:
        yield database
    finally:
        for name, kind in database.sql("SELECT table_name, table_type FROM information_schema.tables").fetchall():
            database.execute(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} {quoted(name)}")


@contextmanager
def connection(scratch: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of its own, which is gone afterwards.

    Args:
        scratch: Folder for what exceeds the memory; by default the system's folder for temporary files.
    """
    with TemporaryDirectory(dir=scratch, prefix=".duckdb-") as folder:
        memory = int(min(LARGEST_MEMORY, MEMORY_SHARE * psutil.virtual_memory().total))
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory // (1 << 20)}MiB",
            "temp_directory": f"{folder}/spill",
            **_OFFLINE,
        }
        # A database in a file keeps large tables out of memory; one in memory would count them against the limit.
        database = duckdb.connect(f"{folder}/tables.duckdb", config=config)
        try:
            database.execute("SET TimeZone = 'UTC'")
            yield database
        finally:
            database.close()


def row_of(database: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The first row of a query."""
    return tuple(database.sql(query).fetchall()[0])


def value_of(database: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The single value of a query."""
    return row_of(database, query)[0]


def numbered(database: duckdb.DuckDBPyConnection, table: str, columns: str, n: IntArray) -> str:
    """SQL for these columns of the rows of a table with the numbers `n`, in their order; valid until the next call."""
    database.register("numbers", pa.table({"n": n, "place": np.arange(len(n))}))
    database.execute("CREATE OR REPLACE TEMP TABLE wanted AS SELECT n, place FROM numbers")
    database.unregister("numbers")
    return f"SELECT {columns} FROM {table} JOIN wanted USING (n) ORDER BY wanted.place"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def file_literal(path: Path) -> str:
    """The path of a single file as an SQL string: what DuckDB takes for a pattern stands for itself."""
    return literal("".join(f"[{one}]" if one in "*?[" else one for one in str(path)))


def parquet_scan(path: Path, numbered: bool = False) -> str:
    """SQL for the rows of a parquet file, with their `file_row_number` if they are numbered.

    Folders like `year=2024` are no columns: that would replace those of the file.
    """
    return f"read_parquet({file_literal(path)}, hive_partitioning=false, file_row_number={numbered})"


def literal(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
