"""Writing a DuckDB query as a parquet file, row group by row group, in the very form in which pandas writes a frame."""

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rarec.data.readers.connection import quoted, value_of
from rarec.data.readers.rows import HIDDEN

ROW_NUMBER = "file_row_number"  # a column that DuckDB adds on request, so no file of ours may have it
GROUP_ROWS = 1 << 20  # of a row group, as pyarrow's default
DTYPES = {"BIGINT": "int64", "INTEGER": "int32", "FLOAT": "float32", "DOUBLE": "float64", "VARCHAR": "str"}


def schema_of(dtypes: dict[str, str]) -> pa.Schema:
    """The schema that pandas gives a frame with these columns."""
    frame = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in dtypes.items()})
    return pa.Schema.from_pandas(frame, preserve_index=False)


def write_batches(batches: Iterator[pa.Table], schema: pa.Schema, path: Path) -> int:
    """Write tables of this schema as row groups of the usual size; returns the number of rows."""
    rows, held = 0, schema.empty_table()
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches:
            held = pa.concat_tables([held, batch.cast(schema)]) if len(held) else batch.cast(schema)
            while len(held) >= GROUP_ROWS:
                writer.write_table(held.slice(0, GROUP_ROWS).combine_chunks(), row_group_size=GROUP_ROWS)
                rows += GROUP_ROWS
                held = held.slice(GROUP_ROWS)
        if len(held) or not rows:
            writer.write_table(held.combine_chunks(), row_group_size=GROUP_ROWS)
            rows += len(held)
    return rows


def batches_of(
    database: duckdb.DuckDBPyConnection, query: str, change: Callable[[pa.Table], pa.Table] | None = None
) -> Iterator[pa.Table]:
    """The rows of a query, in pieces, each of them changed."""
    reader = database.sql(query).to_arrow_reader(GROUP_ROWS)
    for batch in reader:
        table = pa.Table.from_batches([batch])
        yield change(table) if change else table


def write_table(database: duckdb.DuckDBPyConnection, table: str, path: Path) -> int:
    """Write a raw table in the order of its rows; `timestamp` becomes seconds, whole ones if all are."""
    columns, dtypes = [], {}
    for name, kind, *_ in database.sql(f"DESCRIBE {table}").fetchall():
        if name.lower() in (*HIDDEN, ROW_NUMBER):
            continue
        column = quoted(name)
        if name == "timestamp" and table == "interactions":
            fractions = value_of(database, f"SELECT coalesce(bool_or({column} % 1000000 != 0), false) FROM {table}")
            kind = "DOUBLE" if fractions else "BIGINT"
            column = f"{column} / 1e6" if fractions else f"{column} // 1000000"
        columns.append(f"{column} AS {quoted(name)}")
        dtypes[name] = DTYPES[kind]
    # DuckDB keeps the order of a single table, so there is no need to sort; sorting 100 million rows takes gigabytes.
    query = f"SELECT {', '.join(columns)} FROM {table}"
    return write_batches(batches_of(database, query), schema_of(dtypes), path)
