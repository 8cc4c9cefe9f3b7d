"""Incoming rows: those of one file as they are read, and those that the ledger holds."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

COLUMNS = ("user_id", "item_id", "rating", "timestamp")
NO_TIME = -1
# Rows of the ledger. `entry` is the file's number there, `line` its line (in parquet its row) counted from 1. Ids are
# text, times seconds. Where the file has no such column, ratings are NaN and timestamps `NO_TIME`. Files from before
# times had fractions hold them as int64.
ROW_TYPES = {
    "entry": "int64",
    "line": "int64",
    "user_id": "str",
    "item_id": "str",
    "rating": "float32",
    "timestamp": "float64",
}
# Rows of one file. Arrow's small tables cost a tenth of those of pandas.
FILE_ROWS = pa.schema(
    [
        ("line", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float32()),
        ("timestamp", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Parsed:
    """One file as it was read.

    Attributes:
        rows: Its good rows, schema `FILE_ROWS`.
        bad: (line, reason, text) of each bad row.
    """

    rows: pa.Table
    bad: list[tuple[int, str, str]]


@dataclass(frozen=True)
class Incoming:
    """What the ledger holds.

    Attributes:
        rows: Columns `ROW_TYPES`, in order of arrival.
        files: Entry, file, bytes, sha256, rows, bad_rows, first and last timestamp of each file.
        bad: Entry, file, line, reason and text of each row that could not be read.
    """

    rows: pd.DataFrame
    files: pd.DataFrame
    bad: pd.DataFrame


def no_rows() -> pd.DataFrame:
    """An empty table of ledger rows."""
    return pd.DataFrame(columns=list(ROW_TYPES)).astype(ROW_TYPES)
