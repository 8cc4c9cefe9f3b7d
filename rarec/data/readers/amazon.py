"""Amazon reviews of 2014 (McAuley), gzipped: one JSON object per review, and one Python literal per product."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rarec.data.columns import make_column
from rarec.data.quarantine import Quarantine
from rarec.data.sources.files import gzip_lines
from rarec.data.spec import DatasetSpec, Role
from rarec.errors import InputError

REVIEW_NAMES = {"reviewerID": "user_id", "asin": "item_id", "overall": "rating", "unixReviewTime": "timestamp"}
ASIN = re.compile(rb"'asin': '([^']*)'")


def read(files: dict[Role, Path], spec: DatasetSpec, quarantine: Quarantine) -> dict[Role, pd.DataFrame]:
    """Tables by role. Only reviewed products are kept: the file lists the whole catalogue of a category.

    All keys become columns: strings as they are, other values as JSON. `category` is the first category path.
    """
    reviews = _reviews(files["interactions"], spec, quarantine)
    tables: dict[Role, pd.DataFrame] = {"interactions": reviews}
    if "items" in files:
        tables["items"] = _products(files["items"], spec, set(reviews["item_id"].astype(str)), quarantine)
    return tables


def _reviews(path: Path, spec: DatasetSpec, quarantine: Quarantine) -> pd.DataFrame:
    records = _records(path, gzip_lines(path), json.loads, tuple(REVIEW_NAMES), quarantine)
    table = _table([(line, {REVIEW_NAMES.get(k, k): v for k, v in row.items()}) for line, row in records], path)
    return _typed(table, path, spec, quarantine)


def _products(path: Path, spec: DatasetSpec, wanted: set[str], quarantine: Quarantine) -> pd.DataFrame:
    def of_interest() -> Iterator[bytes]:
        for line in gzip_lines(path):
            # Parsing a literal takes a hundred times as long as this search. Lines without a match are parsed.
            asin = ASIN.search(line)
            yield b"" if asin and asin[1].decode("latin-1") not in wanted else line

    rows = []
    for line, record in _records(path, of_interest(), ast.literal_eval, ("asin",), quarantine):
        record["item_id"] = record.pop("asin")
        categories = record.pop("categories", None)
        if categories and categories[0]:
            record["category"] = " > ".join(map(str, categories[0]))
        rows.append((line, record))
    return _typed(_table(rows, path), path, spec, quarantine)


def _records(
    path: Path,
    lines: Iterator[bytes],
    parse: Callable[[str], Any],
    required: tuple[str, ...],
    quarantine: Quarantine,
) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is an object with the required keys."""
    records = []
    count = 0
    for count, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        text = raw.decode("utf-8", errors="replace").strip()
        try:
            record = parse(text)
        # literal_eval may raise any of these.
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            quarantine.add(path.name, count, "not one object per line", text)
            continue
        missing = [key for key in required if not isinstance(record, dict) or record.get(key) is None]
        if missing:
            quarantine.add(path.name, count, f"no {missing[0]!r}", text)
            continue
        records.append((count, record))
    if not count:
        raise InputError(f"{path.name}: the file holds no rows; get a complete copy of it.")
    quarantine.check(path.name, count)
    return records


def _table(rows: list[tuple[int, dict[str, Any]]], path: Path) -> pd.DataFrame:
    """A column of strings for every key, "" if a row lacks it, and the line number of each row."""
    if not rows:
        raise InputError(f"{path.name}: no row can be used; check that both files belong to the same category.")
    names = dict.fromkeys(key for _, row in rows for key in row)

    def text(value: object) -> str:
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    columns: dict[str, Any] = {name: pa.array([text(row.get(name)) for _, row in rows], pa.string()) for name in names}
    return pd.DataFrame({"line": [line for line, _ in rows]} | {k: v.to_pandas() for k, v in columns.items()})


def _typed(table: pd.DataFrame, path: Path, spec: DatasetSpec, quarantine: Quarantine) -> pd.DataFrame:
    """Convert the id, rating and time columns; quarantine the rows where that fails."""
    lines = table.pop("line").to_numpy()
    bad = np.zeros(len(table), dtype=bool)
    columns = []
    for name in table:
        column = make_column(str(name), spec)
        strings = pa.array(table[name], pa.string())
        for row in np.flatnonzero(found := column.parse(strings) & ~bad):
            quarantine.add(
                path.name, int(lines[row]), column.reason(strings[row].as_py()), str(table.iloc[row].to_dict())
            )
        bad |= found
        columns.append(column)
    for column in columns:
        column.keep(~bad if bad.any() else None)
    quarantine.check(path.name, len(table))
    return pd.DataFrame({name: column.finish() for name, column in zip(table, columns, strict=True)})
