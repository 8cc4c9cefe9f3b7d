"""Reading one file of incoming interactions.

A file is CSV with a header or parquet, with the columns user_id, item_id, rating (unless the data set has none) and
timestamp (in seconds, if the data set has a clock). Bad rows are quarantined one by one. A file of another shape, or
with too many bad rows, is refused as a whole. Nothing here writes anything.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rarec.data.columns import LATEST_SECOND, Column, NumberColumn, TextColumn, make_column
from rarec.data.incoming.rows import COLUMNS, FILE_ROWS, NO_TIME, Parsed
from rarec.data.quarantine import Quarantine
from rarec.data.readers.delimited import Layout, read_columns
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError, one_line

BAD_SHARE = 0.5  # a file with a larger share of bad rows is something else than it claims to be
ADVICE = "Correct the file: it is read again as soon as its content changes."
AHEAD_S = 86_400  # clocks and time zones differ, so an event may lie up to a day ahead of our clock
BATCH_ROWS = 1 << 18


def parse_incoming(path: Path, spec: DatasetSpec, now_s: float, bad_share: float = BAD_SHARE) -> Parsed:
    """Read one file according to its suffix, `.csv` or `.parquet`.

    Args:
        path: The file.
        spec: The data set it belongs to.
        now_s: Our clock. Events more than a day ahead of it are bad rows.
        bad_share: Share of bad rows above which the file is refused.

    Raises:
        InputError: The file is refused.
        OSError, MemoryError: This machine cannot read the file now; there may be nothing wrong with it.
    """
    if not path.stat().st_size:
        raise InputError(f"{path.name}: the file is empty.")
    quarantine = Quarantine(bad_share, ADVICE)
    latest = min(now_s + AHEAD_S, LATEST_SECOND)

    def make(name: str) -> Column:
        if name == "timestamp":
            # A data set that has only an order makes it from the times. One without time ignores them.
            if spec.time == "none":
                return TextColumn(name)
            optional = spec.time != "clock"
            hint = " (seconds since 1970 are expected, at most a day ahead of now)"
            return NumberColumn(name, np.float64, 0, latest, optional=optional, hint=hint)
        if name == "rating" and spec.rating_scale is None:
            return NumberColumn(name, np.float32, optional=True)
        return make_column(name, spec) if name in COLUMNS else TextColumn(name)

    required = tuple(
        name
        for name, wanted in (
            ("user_id", True),
            ("item_id", True),
            ("rating", spec.rating_scale is not None),
            ("timestamp", spec.time == "clock"),
        )
        if wanted
    )
    lines: list[np.ndarray] = []
    if path.suffix == ".parquet":
        columns = _read_parquet(path, required, make, quarantine, lines)
    else:
        layout = Layout(",", quoted=True)
        columns = read_columns(path, layout, {}, required, make, quarantine, kept_lines=lines)
    line = np.concatenate(lines) if lines else np.empty(0, np.int64)
    times = np.full(len(line), np.nan)
    if spec.time != "none" and "timestamp" in columns:
        times = columns["timestamp"].finish().to_numpy(np.float64)
    ratings = columns["rating"].finish().to_numpy() if "rating" in columns else np.full(len(line), np.nan, np.float32)
    values = {
        "line": line,
        "user_id": _id_texts(columns["user_id"].finish()),
        "item_id": _id_texts(columns["item_id"].finish()),
        "rating": ratings,
        "timestamp": np.where(np.isnan(times), NO_TIME, times).astype(np.int64),
    }
    return Parsed(pa.table(values, schema=FILE_ROWS), quarantine.rows(path.name))


def _id_texts(ids: pd.Series) -> pa.Array:
    """The ids as text, as they were written: only whole numbers in canonical form became integers."""
    return pc.cast(pa.array(ids.to_numpy()), pa.string()) if ids.dtype == np.int64 else pa.array(ids, pa.string())


def _read_parquet(
    path: Path,
    required: tuple[str, ...],
    make: Callable[[str], Column],
    quarantine: Quarantine,
    kept_lines: list[np.ndarray],
) -> dict[str, Column]:
    """Like `read_columns`. A line is a row, counted from 1."""
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            for name in required:
                if name not in names:
                    found = ", ".join(file.schema_arrow.names)
                    raise InputError(f"{path.name}: column {name!r} is missing; the file has {found}.")
            columns = [make(name) for name in names]
            total, line = file.metadata.num_rows, 1
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                texts = [_as_text(name, batch.column(name), path) for name in names]
                bad = np.zeros(batch.num_rows, dtype=bool)
                for column, values in zip(columns, texts, strict=True):
                    wrong = column.parse(values) & ~bad
                    for row in np.flatnonzero(wrong):
                        shown = ",".join(text[row].as_py() for text in texts)
                        quarantine.add(path.name, line + int(row), column.reason(values[row].as_py()), shown)
                    bad |= wrong
                for column in columns:
                    column.keep(~bad if bad.any() else None)
                kept_lines.append(line + np.flatnonzero(~bad))
                line += batch.num_rows
                quarantine.check(path.name, total)
    except (pa.ArrowException, OSError) as error:
        # Arrow's errors derive from those of the system. Only an OSError with a number comes from the system itself.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise InputError(f"{path.name}: not a complete parquet file ({one_line(error)}).") from error
    return dict(zip(names, columns, strict=True))


def _as_text(name: str, values: pa.Array, path: Path) -> pa.Array:
    """(N,) strings, empty where a value is missing.

    Raises:
        InputError: The column's type has no text form.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_date(values.type):  # midnight UTC
        values = pc.cast(values, pa.timestamp("s"), safe=False)
    if pa.types.is_timestamp(values.type):
        values = pc.cast(values, pa.timestamp("s", values.type.tz), safe=False).cast(pa.int64())
    elif pa.types.is_floating(values.type):
        # A missing value turns a column of whole numbers into floats: 17.0 stands for 17. What exceeds int64 stays.
        wide = pc.cast(values, pa.float64())
        finite, fits = pc.is_finite(wide), pc.less(pc.abs(wide), 2.0**63)
        if pc.all(pc.if_else(finite, pc.equal(pc.floor(wide), wide), True), min_count=0).as_py():
            numbers = pc.cast(pc.if_else(fits, wide, None), pa.int64()).cast(pa.string())
            values = pc.if_else(pc.and_(finite, pc.invert(fits)), pc.cast(values, pa.string()), numbers)
    try:
        return pc.fill_null(pc.cast(values, pa.string()), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path.name}: column {name!r} holds {values.type}; ids or numbers are expected.") from error
