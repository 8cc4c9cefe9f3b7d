"""The three clean tables that both tracks start from: interactions, items, users.

Cleaning drops rows and counts them. It repairs no values: text that means "nothing" and implausible numbers become
missing. It is deterministic and, apart from ties in time, independent of the order of rows in the files. Joins, sorting
and k-core run in DuckDB, which spills to disk, so the interactions are never whole in memory.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from rarec.data.catalogue import ITEM_TEXT, USER_TEXT, item_table, user_table
from rarec.data.raw import RawTables
from rarec.data.readers.connection import connection, parquet_scan, quoted, row_of, value_of
from rarec.data.readers.parquet_files import batches_of, schema_of, write_batches
from rarec.data.source_spec import Time
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

DROPPED = {
    "dropped_implicit": "have no opinion",
    "dropped_unknown_items": "have items that the item file lacks",
    "dropped_duplicates": "repeat a user and item",
    "dropped_k_core": "are outside of the k-core",
}
SPAN_ROWS = 1 << 23  # interactions that are sorted at once


@dataclass(frozen=True)
class Tables:
    """Clean tables, as parquet files in a folder; see `rarec.data.schemas` for their columns.

    Attributes:
        folder: Holds `interactions.parquet`, `items.parquet` and `users.parquet`.
        counts: Rows read, rows dropped by reason, and sizes before and after k-core.
        time: What `timestamp` means.
    """

    folder: Path
    counts: dict[str, int]
    time: Time
    kept: Any = field(default=None, repr=False, compare=False)  # a temporary folder lives as long as the tables

    @cached_property
    def interactions(self) -> pd.DataFrame:
        """User_id, item_id, rating (float32, NaN if none), timestamp, user_index, item_index (int32).

        Sorted by (user, timestamp, order of appearance). `timestamp` is in seconds if the data have a clock (int64, or
        float64 if some have fractions), else the order within the user: as published, or drawn with `split_seed` and
        counted from 1.
        """
        return pd.read_parquet(self.folder / "interactions.parquet")

    @cached_property
    def items(self) -> pd.DataFrame:
        """One row per item with interactions, sorted by item_id; item_index is the row number."""
        return pd.read_parquet(self.folder / "items.parquet")

    @cached_property
    def users(self) -> pd.DataFrame:
        """One row per user with interactions, sorted by user_id; user_index is the row number."""
        return pd.read_parquet(self.folder / "users.parquet")


def build_tables(spec: DatasetSpec, raw: RawTables, into: Path | None = None) -> Tables:
    """Make the clean, typed, sorted tables of a data set. `raw` is not changed.

    Args:
        spec: The data set.
        raw: Its raw tables.
        into: Existing folder that receives the tables; by default a temporary one that lives as long as the result.

    Raises:
        InputError: There are repeated interactions or unknown items that the data set does not allow, or nothing is
            left.
    """
    kept = None
    if into is None:
        kept = TemporaryDirectory(prefix="rarec-tables-")
        into = Path(kept.name)
    counts: dict[str, int] = {}
    with connection(into) as database:
        time, time_type = _load(database, raw)
        counts |= _read_counts(database, raw)
        _drop_implicit(database, spec, counts)
        _drop_unknown(database, spec, raw, counts)
        _drop_repeated(database, spec, counts)
        _sizes(database, "_before_k_core", counts)
        if spec.k_core:
            k_core(database, spec.k_core)
        rows = _count(database, "events")
        counts["dropped_k_core"] = counts["interactions_before_k_core"] - rows
        if not rows:
            before = counts["interactions_before_k_core"]
            raise InputError(
                f"{spec.name}: the {spec.k_core}-core of its {before} interactions is empty; lower `k_core`."
                if before
                else f"{spec.name}: all interactions were dropped ({_dropped(counts)}); check the columns of the "
                "files, `implicit_rating` and `unknown_items`."
            )
        _sizes(database, "", counts)
        user_ids, item_ids = _compact(database, "user"), _compact(database, "item")
        if time == "none":
            _draw_order(database, spec.split_seed)
        _write_interactions(database, user_ids, item_ids, time_type, into / "interactions.parquet")
        items = _published(database, raw.file("items"), "item", ITEM_TEXT)
        users = _published(database, raw.file("users"), "user", USER_TEXT)
        if users is not None:
            counts["users_without_profile"] = int(users.pop("absent").sum())
        if items is not None:
            items.pop("absent")
    item_table(spec, _id_index(item_ids), items).to_parquet(into / "items.parquet", index=False)
    user_table(_id_index(user_ids), users).to_parquet(into / "users.parquet", index=False)
    return Tables(into, counts, time, kept)


def _dropped(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[name]:,} {words}" for name, words in DROPPED.items() if counts.get(name))


def cleaned(counts: dict[str, int]) -> str:
    """What cleaning kept, and what it dropped and why, in words."""
    kept = f"{counts['interactions']:,} interactions of {counts['users']:,} users and {counts['items']:,} items remain"
    return kept + (f"; {dropped}" if (dropped := _dropped(counts)) else "")


def _load(database: duckdb.DuckDBPyConnection, raw: RawTables) -> tuple[Time, str]:
    """Tables `users` and `items` (id, code) of all ids, and `events` (n, user, item, rating, time) in file order.

    Returns what times mean, and their type.
    """
    source = f"({raw.query})"
    columns = {name: kind for name, kind, *_ in database.sql(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    time: Time = "clock" if "timestamp" in columns else "order" if "order" in columns else "none"
    at = {"clock": "timestamp", "order": quoted("order"), "none": "CAST(0 AS BIGINT)"}[time]
    rating = "nullif(rating, 'nan'::FLOAT)" if "rating" in columns else "CAST(NULL AS FLOAT)"
    for key in ("user", "item"):
        database.execute(
            f"CREATE TABLE {key}s AS SELECT id, CAST(row_number() OVER (ORDER BY id) - 1 AS INTEGER) AS code FROM "
            f"(SELECT DISTINCT {key}_id AS id FROM {source})"
        )
    database.execute(
        f"CREATE TABLE events AS SELECT n, users.code AS user, items.code AS item, {rating} AS rating, "
        f"{at} AS time FROM {source} JOIN users ON user_id = users.id JOIN items ON item_id = items.id"
    )
    return time, columns.get("timestamp", "BIGINT")


def _count(database: duckdb.DuckDBPyConnection, table: str) -> int:
    rows = value_of(database, f"SELECT count(*) FROM {table}")
    return int(rows)


def _keep(database: duckdb.DuckDBPyConnection, query: str) -> int:
    """Replace `events` by the rows of the query; returns how many were dropped."""
    before = _count(database, "events")
    database.execute(f"CREATE TABLE kept AS {query}")
    database.execute("DROP TABLE events")
    database.execute("ALTER TABLE kept RENAME TO events")
    return before - _count(database, "events")


def k_core(database: duckdb.DuckDBPyConnection, k: int) -> None:
    """Reduce `events` to the largest subset in which each `user` and each `item` has at least k interactions."""
    while True:
        few = {key: f"SELECT {key} FROM events GROUP BY {key} HAVING count(*) < {k}" for key in ("user", "item")}
        # Users first, then the items that are left: fewer passes than with both at once.
        dropped = 0
        for key, query in few.items():
            rare = value_of(database, f"SELECT count(*) FROM ({query})")
            if rare:
                dropped += _keep(database, f"SELECT * FROM events WHERE {key} NOT IN ({query})")
        if not dropped:
            return


def _read_counts(database: duckdb.DuckDBPyConnection, raw: RawTables) -> dict[str, int]:
    counts = {"interactions_read": _count(database, "events")}
    if raw.incoming_rows:
        counts["incoming_rows"] = raw.incoming_rows
    for name in ("items", "users"):
        if (path := raw.file(name)) is not None:
            counts[f"{name}_read"] = _count(database, parquet_scan(path))
    for source in raw.sources:
        counts[f"{source['role']}_quarantined"] = counts.get(f"{source['role']}_quarantined", 0) + int(
            (raw.quarantine["file"] == source["file"]).sum()
        )
    return counts


def _sizes(database: duckdb.DuckDBPyConnection, suffix: str, counts: dict[str, int]) -> None:
    users, items, rows = row_of(database, "SELECT count(DISTINCT user), count(DISTINCT item), count(*) FROM events")
    counts |= {f"users{suffix}": users, f"items{suffix}": items, f"interactions{suffix}": rows}


def _drop_implicit(database: duckdb.DuckDBPyConnection, spec: DatasetSpec, counts: dict[str, int]) -> None:
    rated = value_of(database, "SELECT count(rating) FROM events")
    if spec.implicit_rating is None or not rated:
        return
    query = f"SELECT * FROM events WHERE rating IS DISTINCT FROM CAST({spec.implicit_rating!r} AS FLOAT)"
    counts["dropped_implicit"] = _keep(database, query)


def _drop_unknown(
    database: duckdb.DuckDBPyConnection, spec: DatasetSpec, raw: RawTables, counts: dict[str, int]
) -> None:
    path = raw.file("items")
    if path is None:
        return
    known = (
        f"SELECT code FROM items WHERE CAST(id AS VARCHAR) IN "
        f"(SELECT CAST(item_id AS VARCHAR) FROM {parquet_scan(path)})"
    )
    unknown, number = row_of(database, f"SELECT count(*), count(DISTINCT item) FROM events WHERE item NOT IN ({known})")
    counts["dropped_unknown_items"] = unknown
    if not unknown:
        return
    if spec.unknown_items == "error":
        user, item = row_of(
            database,
            f"SELECT users.id, items.id FROM events JOIN users ON user = users.code JOIN items ON item = items.code "
            f"WHERE item NOT IN ({known}) ORDER BY n LIMIT 1",
        )
        files = {str(source["role"]): source["file"] for source in raw.sources}
        bad = counts.get("items_quarantined", 0)
        aside = f" ({bad} of its rows are unreadable and quarantined)" if bad else ""
        raise InputError(
            f"{files.get('interactions', spec.name)}: {unknown} interactions have {number} items that "
            f"{files.get('items', 'the item file')} lacks{aside}; first: item_id {item} of user_id {user}. Complete "
            "the item file, or set unknown_items = 'drop' for the data set."
        )
    _keep(database, f"SELECT * FROM events WHERE item IN ({known})")


def _drop_repeated(database: duckdb.DuckDBPyConnection, spec: DatasetSpec, counts: dict[str, int]) -> None:
    """Apply the rule for repeated interactions: of a pair, the latest row counts."""
    counts["dropped_duplicates"] = 0
    pairs = "user, item, time" if spec.duplicates == "keep-all" else "user, item"
    latest = f"row_number() OVER (PARTITION BY {pairs} ORDER BY time DESC, n DESC)"
    groups = value_of(database, f"SELECT count(*) FROM (SELECT 1 FROM events GROUP BY {pairs} HAVING count(*) > 1)")
    if not groups:
        return
    if spec.duplicates == "error":
        repeated = f"(SELECT * FROM events QUALIFY {latest} > 1)"
        user, item = row_of(
            database,
            f"SELECT users.id, items.id FROM {repeated} JOIN users ON user = users.code "
            "JOIN items ON item = items.code ORDER BY n LIMIT 1",
        )
        raise InputError(
            f"{spec.name}: {_count(database, repeated)} interactions repeat a user and item; first: user_id {user} and "
            f"item_id {item}. Remove them, or set duplicates = 'keep-last' or 'keep-all' for the data set."
        )
    counts["dropped_duplicates"] = _keep(database, f"SELECT * FROM events QUALIFY {latest} = 1")


def _compact(database: duckdb.DuckDBPyConnection, key: str) -> pa.Array:
    """Number the remaining ids without gaps, in their order, as table `{key}_codes` (code, place); returns the ids."""
    database.execute(
        f"CREATE TABLE {key}_codes AS SELECT code, CAST(row_number() OVER (ORDER BY code) - 1 AS INTEGER) AS place "
        f"FROM (SELECT DISTINCT {key} AS code FROM events)"
    )
    ids = database.sql(f"SELECT id FROM {key}_codes JOIN {key}s USING (code) ORDER BY place").to_arrow_table()
    return ids.column(0).combine_chunks()


def _write_interactions(
    database: duckdb.DuckDBPyConnection, user_ids: pa.Array, item_ids: pa.Array, time_type: str, path: Path
) -> None:
    seconds = "float64" if time_type == "DOUBLE" else "int64"
    kinds = {
        name: "int64" if pa.types.is_integer(ids.type) else "str"
        for name, ids in (("user", user_ids), ("item", item_ids))
    }
    schema = schema_of(
        {
            "user_id": kinds["user"],
            "item_id": kinds["item"],
            "rating": "float32",
            "timestamp": seconds,
            "user_index": "int32",
            "item_index": "int32",
        }
    )

    def with_ids(batch: pa.Table) -> pa.Table:
        ids = [user_ids.take(batch["user_index"]), item_ids.take(batch["item_index"])]
        arrays = [*ids, batch["rating"], batch["timestamp"], batch["user_index"], batch["item_index"]]
        return pa.table(arrays, names=schema.names)

    batches = (
        batches_of(
            database,
            "SELECT rating, time AS timestamp, u.place AS user_index, i.place AS item_index "
            "FROM events JOIN user_codes u ON user = u.code JOIN item_codes i ON item = i.code "
            f"WHERE {some} ORDER BY user, time, n",
            with_ids,
        )
        for some in _spans(database)
    )
    write_batches(chain.from_iterable(batches), schema, path)


def _spans(database: duckdb.DuckDBPyConnection) -> list[str]:
    """SQL conditions that split `events` by user into spans, in order, each small enough to be sorted in memory."""
    counts = database.sql("SELECT user, count(*) AS events FROM events GROUP BY user ORDER BY user").fetchnumpy()
    span = np.cumsum(counts["events"]) // SPAN_ROWS
    users = np.asarray(counts["user"])
    starts = users[np.flatnonzero(np.diff(span, prepend=-1))].tolist()
    return [
        f"user >= {first}" + (f" AND user < {following}" if following is not None else "")
        for first, following in zip_longest(starts, starts[1:])
    ]


def _draw_order(database: duckdb.DuckDBPyConnection, seed: int) -> None:
    """Give every user's events a random order: `time` becomes the place within the user, from 1."""
    # Starting from a canonical order, so that the draw does not depend on the order of rows in the file.
    random = np.random.default_rng(seed)
    database.execute("CREATE TABLE places (m BIGINT, place BIGINT)")
    for some in _spans(database):
        start = database.sql(f"SELECT user, n FROM events WHERE {some} ORDER BY user, item, n").fetchnumpy()
        users, n = np.asarray(start["user"]), np.asarray(start["n"])
        order = np.lexsort((random.random(len(users)), users))
        _, firsts, lengths = np.unique(users, return_index=True, return_counts=True)
        places = np.arange(1, len(users) + 1) - np.repeat(firsts, lengths)
        database.register("drawn", pa.table({"m": n[order], "place": places}))
        database.execute("INSERT INTO places SELECT m, place FROM drawn")
        database.unregister("drawn")
    _keep(database, "SELECT n, user, item, rating, place AS time FROM events JOIN places ON n = m")


def _published(
    database: duckdb.DuckDBPyConnection, path: Path | None, key: str, names: tuple[str, ...]
) -> pd.DataFrame | None:
    """Published rows in the order of the remaining ids, with missing values for ids that were not published."""
    if path is None:
        return None
    source = parquet_scan(path)
    there = [name for name, *_ in database.sql(f"DESCRIBE SELECT * FROM {source}").fetchall()]
    wanted = [name for name in there if name in (*names, "year", "age")]
    columns = "".join(f", published.{quoted(name)}" for name in wanted)
    return (
        database.sql(
            f"SELECT published.{key}_id IS NULL AS absent{columns} FROM {key}_codes JOIN {key}s USING (code) "
            f"LEFT JOIN {source} published ON CAST({key}s.id AS VARCHAR) = CAST(published.{key}_id AS VARCHAR) "
            f"ORDER BY {key}_codes.place"
        )
        .to_arrow_table()
        .to_pandas()
    )


def _id_index(ids: pa.Array) -> pd.Index:
    return (
        pd.Index(ids.to_numpy(zero_copy_only=False))
        if pa.types.is_integer(ids.type)
        else pd.Index(pd.Series(ids.to_pandas(), dtype="str"))
    )
