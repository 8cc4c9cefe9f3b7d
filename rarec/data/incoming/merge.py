"""Interactions that arrive after a data set was published: reading one file, and adding rows to the published ones.

A file is CSV with a header or parquet, with the columns user_id, item_id, rating (unless the data set has none) and
timestamp (seconds; where the data set has a clock). Bad rows are set aside one by one; a file of another shape, or with
too many bad rows, is refused as a whole. Nothing here writes anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rarec.data.columns import LATEST_SECOND, Column, NumberColumn, TextColumn, make_column
from rarec.data.quarantine import Quarantine
from rarec.data.raw import RawTables
from rarec.data.readers.delimited import Layout, read_columns
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError, one_line

BAD_SHARE = 0.5  # a file with more bad rows than that was meant as something else
ADVICE = "Correct the file; as soon as its content is another one it is read again."
AHEAD_S = 86_400  # an event may lie a day ahead of our clock: clocks differ, and so do people's ideas of time zones
NO_TIME = -1
BATCH_ROWS = 1 << 18
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
# `entry` is the file's number in the ledger; `line` counts from 1, in parquet the rows; ids as text; NaN and NO_TIME
# where the file has no such column.
ROW_TYPES = {
    "entry": "int64",
    "line": "int64",
    "user_id": "str",
    "item_id": "str",
    "rating": "float32",
    "timestamp": "int64",
}
# One file's rows as they are read; small tables of Arrow's cost a tenth of those of pandas.
FILE_ROWS = pa.schema(
    [
        ("line", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float32()),
        ("timestamp", pa.int64()),
    ]
)
WHOLE_NUMBER = r"(?:0|[1-9][0-9]{0,17})"


@dataclass(frozen=True)
class Incoming:
    """Rows of the ledger.

    Attributes:
        rows: columns `ROW_TYPES`, in the order in which they arrived.
        files: entry, file, bytes, sha256, rows, bad_rows, first and last timestamp of each.
        bad: entry, file, line, reason and text of the rows that could not be read.
    """

    rows: pd.DataFrame
    files: pd.DataFrame
    bad: pd.DataFrame


@dataclass(frozen=True)
class Parsed:
    """One file as read.

    Attributes:
        rows: its good rows, schema `FILE_ROWS`.
        bad: (line, reason, text) of the others.
    """

    rows: pa.Table
    bad: list[tuple[int, str, str]]


@dataclass(frozen=True)
class Merged:
    """Published and incoming rows together.

    Attributes:
        raw: the tables; incoming rows stand behind the published ones, bad ones in the quarantine.
        counts: incoming rows added, rows that were there already, rows set aside, and published rows that a later
            rating of the same user and item replaced.
    """

    raw: RawTables
    counts: dict[str, int]


def no_rows() -> pd.DataFrame:
    """A table of rows without any."""
    return pd.DataFrame(columns=list(ROW_TYPES)).astype(ROW_TYPES)


def parse_incoming(path: Path, spec: DatasetSpec, now_s: float, bad_share: float = BAD_SHARE) -> Parsed:
    """Read one file, by its suffix `.csv` or `.parquet`.

    Args:
        path: the file.
        spec: the data set that it belongs to.
        now_s: our clock; events more than a day later are bad.
        bad_share: share of bad rows above which the file is refused.

    Raises:
        InputError: the file is refused; says why.
        OSError, MemoryError: this machine cannot read it now, which says nothing about the file.
    """
    if not path.stat().st_size:
        raise InputError(f"{path.name}: the file is empty.")
    quarantine = Quarantine(bad_share, ADVICE)
    latest = min(now_s + AHEAD_S, LATEST_SECOND)

    def make(name: str) -> Column:
        if name == "timestamp":
            # An order of its own is made of times where they come; without any time they say nothing.
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
    """The ids as they were written: a whole number among them was in its canonical form."""
    return pc.cast(pa.array(ids.to_numpy()), pa.string()) if ids.dtype == np.int64 else pa.array(ids, pa.string())


def _read_parquet(
    path: Path,
    required: tuple[str, ...],
    make: Callable[[str], Column],
    quarantine: Quarantine,
    kept_lines: list[np.ndarray],
) -> dict[str, Column]:
    """As `read_columns`; a line is a row, counted from 1."""
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            for name in required:
                if name not in names:
                    raise InputError(f"{path.name}: no column {name!r}; it has {', '.join(file.schema_arrow.names)}.")
            columns = [make(name) for name in names]
            total, line = file.metadata.num_rows, 1
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                texts = [_as_text(name, batch.column(name), path) for name in names]
                bad = np.zeros(batch.num_rows, dtype=bool)
                for column, values in zip(columns, texts, strict=True):
                    found = column.parse(values) & ~bad
                    for row in np.flatnonzero(found):
                        shown = ",".join(text[row].as_py() for text in texts)
                        quarantine.add(path.name, line + int(row), column.reason(values[row].as_py()), shown)
                    bad |= found
                for column in columns:
                    column.keep(~bad if bad.any() else None)
                kept_lines.append(line + np.flatnonzero(~bad))
                line += batch.num_rows
                quarantine.check(path.name, total)
    except (pa.ArrowException, OSError) as error:
        # Arrow has errors of this machine for children of its own; an OSError with a number is the system's.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise InputError(f"{path.name}: not a whole parquet file ({one_line(error)}).") from error
    return dict(zip(names, columns, strict=True))


def _as_text(name: str, values: pa.Array, path: Path) -> pa.Array:
    """Strings (N,), empty where a value is missing; InputError for a type that has no text."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_date(values.type):  # its midnight, by UTC
        values = pc.cast(values, pa.timestamp("s"), safe=False)
    if pa.types.is_timestamp(values.type):
        values = pc.cast(values, pa.timestamp("s", values.type.tz), safe=False).cast(pa.int64())
    elif pa.types.is_floating(values.type):
        # Whole numbers that a missing value made into 17.0 are meant as 17. What no int64 holds stays as it is.
        wide = pc.cast(values, pa.float64())
        finite, fits = pc.is_finite(wide), pc.less(pc.abs(wide), 2.0**63)
        if pc.all(pc.if_else(finite, pc.equal(pc.floor(wide), wide), True), min_count=0).as_py():
            numbers = pc.cast(pc.if_else(fits, wide, None), pa.int64()).cast(pa.string())
            values = pc.if_else(pc.and_(finite, pc.invert(fits)), pc.cast(values, pa.string()), numbers)
    try:
        return pc.fill_null(pc.cast(values, pa.string()), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path.name}: column {name!r} holds {values.type}, not ids or numbers.") from error


def merge_incoming(spec: DatasetSpec, raw: RawTables, incoming: Incoming) -> Merged:
    """The published tables with the incoming rows behind them; both arguments are left as they are.

    A row that is there already (same user, item, timestamp and rating) is not added. Where the data set allows a user
    to meet an item only once, the later of the two stays. No incoming row makes the data set unreadable: one that does
    not fit (another form of id, an item that the item file lacks where that is an error) goes to the quarantine.
    """
    published, rows = raw.interactions, incoming.rows
    has_clock, has_order = "timestamp" in published, "order" in published
    reasons = _reasons(spec, raw, rows)
    new = rows[reasons == ""]
    bad = rows[reasons != ""]
    aside = pd.DataFrame({"entry": bad["entry"], "line": bad["line"], "reason": reasons[reasons != ""]})
    aside["text"] = [",".join(map(str, row)) for row in bad[list(COLUMNS)].itertuples(index=False, name=None)]
    aside = aside.merge(incoming.files[["entry", "file"]], on="entry")
    for name in ("user_id", "item_id"):
        new = new.assign(**{name: new[name].astype(published[name].dtype)})

    near = published[published["user_id"].isin(new["user_id"])]
    named = ["user_id", "item_id", *(["rating"] if "rating" in published else [])]
    if has_clock:
        there = pd.concat([near, new])[[*named, "timestamp"]].duplicated().to_numpy()
    elif has_order:
        there = np.concatenate([np.zeros(len(near), bool), new[[*named, "timestamp"]].duplicated()])
    else:
        there = pd.concat([near, new])[named].duplicated().to_numpy()
    copies = int(there[len(near) :].sum())
    new = new[~there[len(near) :]]
    replaced = pd.Index([])
    if spec.duplicates == "error":
        replaced, kept = _later(near, new, has_clock)
        copies += int((~kept).sum())
        new = new[kept]
    if has_order:
        new = new.assign(order=_next_places(near, new))

    columns = [name for name in published.columns if name in new.columns]
    rest = published.drop(index=replaced)
    quarantine = pd.concat([incoming.bad, aside], ignore_index=True)
    quarantine = quarantine.assign(file="incoming/" + quarantine["file"].astype("str"))[raw.quarantine.columns]
    merged = replace(
        raw,
        interactions=pd.concat([rest, new[columns].astype(published.dtypes[columns])], ignore_index=True)
        if len(new)
        else published,
        quarantine=pd.concat([raw.quarantine, quarantine], ignore_index=True).astype(raw.quarantine.dtypes),
        incoming_rows=len(new),
    )
    counts = {
        "incoming_rows": len(new),
        "incoming_there_already": copies,
        "incoming_quarantined": len(quarantine),
        "published_rows_replaced": len(replaced),
    }
    return Merged(merged, counts)


def _reasons(spec: DatasetSpec, raw: RawTables, rows: pd.DataFrame) -> pd.Series:
    """Why each incoming row does not fit the published tables, empty where it does."""
    published = raw.interactions
    reasons = pd.Series("", index=rows.index, dtype="str")

    def bad(where: pd.Series, reason: "pd.Series | str") -> None:
        nonlocal reasons
        reasons = reasons.mask(where & (reasons == ""), reason)

    for name in ("user_id", "item_id"):
        if published[name].dtype == np.int64:
            wrong = ~rows[name].str.fullmatch(WHOLE_NUMBER)
            bad(wrong, name + " '" + rows[name] + "' is no whole number, as those of the data set are")
    if "rating" in published:
        bad(rows["rating"].isna(), "rating is missing")
    if "timestamp" in published:
        bad(rows["timestamp"] == NO_TIME, "timestamp is missing")
    if raw.items is not None and spec.unknown_items == "error":
        unknown = ~rows["item_id"].isin(raw.items["item_id"].astype("str"))
        bad(unknown, "item_id '" + rows["item_id"] + "' is not in the item file")
    return reasons


def _later(near: pd.DataFrame, new: pd.DataFrame, has_clock: bool) -> tuple[pd.Index, np.ndarray]:
    """Labels of the published rows that a later incoming one replaces, and which incoming ones (N,) stay."""
    both = pd.concat([near, new])
    times = both["timestamp"].to_numpy() if has_clock else np.zeros(len(both))
    order = np.argsort(times, kind="stable")
    earlier = np.empty(len(both), dtype=bool)
    earlier[order] = both.iloc[order].duplicated(["user_id", "item_id"], keep="last").to_numpy()
    pairs = pd.MultiIndex.from_frame(both[["user_id", "item_id"]])
    # A pair that the published files themselves repeat is theirs to answer for.
    arrived = pairs.isin(pairs[len(near) :])
    return near.index[(earlier & arrived)[: len(near)]], ~earlier[len(near) :]


def _next_places(near: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """(N,) int64 places behind each user's published ones, by time and then by arrival."""
    by_time = new.sort_values("timestamp", kind="stable")
    last = near.groupby("user_id")["order"].max()
    start = by_time["user_id"].map(last).fillna(0).astype("int64")
    return (start + by_time.groupby("user_id").cumcount() + 1).reindex(new.index)
