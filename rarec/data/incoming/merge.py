"""Adding incoming rows to the published ones, as parts of their own: the published table is not written again."""

from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa

from rarec.data.formats.unify import ISBN, NUMERIC, is_whole, number_of
from rarec.data.incoming.rows import COLUMNS, NO_TIME, Incoming
from rarec.data.raw import INCOMING_ROWS, REPLACED, ROLES, RawTables
from rarec.data.readers.connection import connection, parquet_scan, row_of, value_of
from rarec.data.readers.parquet_files import DTYPES, batches_of, schema_of, write_batches
from rarec.data.sources.files import link_or_copy
from rarec.data.spec import DatasetSpec


@dataclass(frozen=True)
class Merged:
    """Published and incoming rows together.

    Attributes:
        raw: The tables: incoming rows after the published ones, bad rows in the quarantine.
        counts: Numbers of incoming rows that were added, were there already or were quarantined, and of published rows
            that a later rating of the same user and item replaced.
    """

    raw: RawTables
    counts: dict[str, int]


def merge_incoming(spec: DatasetSpec, raw: RawTables, incoming: Incoming, into: Path) -> Merged:
    """Append incoming rows to the published tables. Neither argument is changed.

    A row that is already there (same user, item, timestamp and rating) is not added. If the data set allows only one
    interaction per user and item, the later one stays. No incoming row can make the data set unreadable: a row that
    does not fit (an id of another form, or an item that the item file lacks where that is an error) is quarantined.

    Args:
        spec: The data set.
        raw: Its published tables.
        incoming: The rows that have arrived.
        into: Existing folder that receives the tables. The published ones are linked or copied there.
    """
    with connection(into) as database:
        columns = _load(database, raw, incoming)
        warnings = [_spell(database, key, columns[key]) for key in ("user_id", "item_id")]
        bad = _set_aside(database, spec, raw, columns)
        copies = _drop_copies(database, columns)
        replaced = 0
        if spec.duplicates == "error":
            replaced, older = _keep_later(database, columns, into)
            copies += older
        rows = _write(database, columns, into / INCOMING_ROWS)
    for role in ROLES:
        if (file := raw.file(role)) is not None:
            link_or_copy(file, into / file.name)
    names = incoming.files.set_index("entry")["file"]
    aside = bad.assign(file=bad["entry"].map(names))
    quarantine = pd.concat([incoming.bad, aside], ignore_index=True)
    quarantine = quarantine.assign(file="incoming/" + quarantine["file"].astype("str"))[raw.quarantine.columns]
    merged = replace(
        raw,
        folder=into,
        quarantine=pd.concat([raw.quarantine, quarantine], ignore_index=True).astype(raw.quarantine.dtypes),
        incoming_rows=rows,
        warnings=(*raw.warnings, *filter(None, warnings)),
    )
    counts = {
        "incoming_rows": rows,
        "incoming_there_already": copies,
        "incoming_quarantined": len(quarantine),
        "published_rows_replaced": replaced,
    }
    return Merged(merged, counts)


def _load(database: duckdb.DuckDBPyConnection, raw: RawTables, incoming: Incoming) -> dict[str, str]:
    """View `published` (n and its columns) and table `new` (place, entry, line, ids as text, rating, timestamp).

    Returns the type of each published column.
    """
    database.execute(f"CREATE VIEW published AS {raw.published_query}")
    arrow = pa.Table.from_pandas(incoming.rows, preserve_index=False)
    database.register("arrived", arrow)
    database.execute("CREATE TABLE new AS SELECT row_number() OVER () - 1 AS place, * FROM arrived")
    database.unregister("arrived")
    for key in ("user_id", "item_id"):
        database.execute(f"ALTER TABLE new ALTER {key} TYPE VARCHAR")
    return {name: kind for name, kind, *_ in database.sql("DESCRIBE published").fetchall() if name != "n"}


def _spell(database: duckdb.DuckDBPyConnection, key: str, kind: str) -> str:
    """Spell incoming ids as published ones, and new ones alike; returns a warning if that changed any.

    Another spelling is the same id if all published ids are numbers and it is the same number, or if it is an ISBN that
    differs in the case of its last character.
    """
    database.execute(f"CREATE OR REPLACE TABLE known AS SELECT DISTINCT CAST({key} AS VARCHAR) AS id FROM published")
    numeric = kind == "BIGINT" or value_of(
        database, f"SELECT coalesce(bool_and(regexp_full_match(id, '{NUMERIC}')), false) FROM known"
    )
    pattern, form = (NUMERIC, f"CAST({number_of('{}')} AS VARCHAR)") if numeric else (ISBN, "upper({})")
    # A new id becomes a whole number where ids are, else it is spelled as when it first arrived.
    new = "form" if kind == "BIGINT" else "first_value(written) OVER (PARTITION BY form ORDER BY place)"
    database.execute(
        f"CREATE OR REPLACE TABLE spelled AS SELECT written, coalesce(id, {new}) AS chosen FROM "
        f"(SELECT {key} AS written, {form.format(key)} AS form, min(place) AS place FROM new "
        f"ANTI JOIN known ON {key} = known.id WHERE regexp_full_match({key}, '{pattern}') "
        f"AND {form.format(key)} IS NOT NULL GROUP BY ALL) "
        f"LEFT JOIN (SELECT id, {form.format('id')} AS known_form FROM known "
        f"WHERE regexp_full_match(id, '{pattern}')) ON form = known_form"
    )
    database.execute("DELETE FROM spelled WHERE chosen = written")
    found = row_of(database, "SELECT count(*), min(written), arg_min(chosen, written) FROM spelled")
    if not found[0]:
        return ""
    database.execute(f"UPDATE new SET {key} = chosen FROM spelled WHERE {key} = written")
    return f"{key}: {found[0]:,} incoming ids are written otherwise (first: {found[1]!r}); here {found[2]!r}."


def _set_aside(
    database: duckdb.DuckDBPyConnection, spec: DatasetSpec, raw: RawTables, columns: dict[str, str]
) -> pd.DataFrame:
    """Take rows that do not fit out of `new`; returns entry, line, reason and text of each."""
    reasons = [
        (f"NOT {is_whole(key)}", f"'{key} ''' || {key} || ''' is not a whole number like the data set''s other ids'")
        for key in ("user_id", "item_id")
        if columns[key] == "BIGINT"
    ]
    if "rating" in columns:
        reasons.append(("rating IS NULL OR isnan(rating)", "'rating is missing'"))
    if "timestamp" in columns:
        reasons.append((f"timestamp = {NO_TIME}", "'timestamp is missing'"))
    items = raw.file("items")
    if items is not None and spec.unknown_items == "error":
        known = f"SELECT CAST(item_id AS VARCHAR) FROM {parquet_scan(items)}"
        reasons.append((f"item_id NOT IN ({known})", "'item_id ''' || item_id || ''' is not in the item file'"))
    reason = "CASE " + " ".join(f"WHEN {test} THEN {text}" for test, text in reasons) + " END" if reasons else "NULL"
    database.execute(f"CREATE TABLE judged AS SELECT *, {reason} AS reason FROM new")
    bad = database.sql("SELECT * FROM judged WHERE reason IS NOT NULL ORDER BY place").to_arrow_table().to_pandas()
    database.execute(
        "CREATE OR REPLACE TABLE new AS SELECT * EXCLUDE reason FROM judged WHERE reason IS NULL; DROP TABLE judged"
    )
    for key in ("user_id", "item_id"):
        database.execute(f"ALTER TABLE new ALTER {key} TYPE {columns[key]}")
    shown = [",".join(map(_plain, row)) for row in bad[list(COLUMNS)].itertuples(index=False, name=None)]
    return bad[["entry", "line", "reason"]].assign(text=shown)


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _drop_copies(database: duckdb.DuckDBPyConnection, columns: dict[str, str]) -> int:
    """Drop rows of `new` that are published, or came before; returns how many."""
    same = ["user_id", "item_id", *(["rating"] if "rating" in columns else [])]
    clock = ["timestamp"] if "timestamp" in columns else []
    place = ["timestamp"] if clock or "order" in columns else []
    before = value_of(database, "SELECT count(*) FROM new")
    # Where places are an order, a published row has no time to compare.
    there = "false"
    if clock or "order" not in columns:
        match = " AND ".join(f"p.{name} IS NOT DISTINCT FROM new.{name}" for name in [*same, *clock])
        there = f"EXISTS (SELECT 1 FROM published p WHERE {match})"
    first = f"row_number() OVER (PARTITION BY {', '.join([*same, *place])} ORDER BY place) = 1"
    database.execute(f"CREATE TABLE fresh AS SELECT * FROM (SELECT * FROM new QUALIFY {first}) new WHERE NOT {there}")
    database.execute("DROP TABLE new; ALTER TABLE fresh RENAME TO new")
    return int(before - value_of(database, "SELECT count(*) FROM new"))


def _keep_later(database: duckdb.DuckDBPyConnection, columns: dict[str, str], into: Path) -> tuple[int, int]:
    """Of each pair that arrived, keep the latest row; returns how many published rows and how many new ones go."""
    time = "timestamp" if "timestamp" in columns else "0"
    database.execute(
        f"CREATE TABLE pairs AS SELECT n, -1 AS place, user_id, item_id, {time} AS moment FROM published "
        "SEMI JOIN new USING (user_id, item_id) "
        f"UNION ALL SELECT -1, place, user_id, item_id, {time} FROM new"
    )
    database.execute(
        "CREATE TABLE older AS SELECT * FROM pairs QUALIFY row_number() OVER "
        "(PARTITION BY user_id, item_id ORDER BY moment DESC, place DESC, n DESC) > 1"
    )
    published = database.sql("SELECT n FROM older WHERE place < 0 ORDER BY n").to_arrow_table()
    if len(published):
        write_batches(iter([published]), schema_of({"n": "int64"}), into / REPLACED)
    older = value_of(database, "SELECT count(*) FROM older WHERE place >= 0")
    database.execute("DELETE FROM new WHERE place IN (SELECT place FROM older)")
    return len(published), int(older)


def _write(database: duckdb.DuckDBPyConnection, columns: dict[str, str], path: Path) -> int:
    """Write the rows of `new` with those published columns that they have; returns how many there are."""
    names = {name: kind for name, kind in columns.items() if name in (*COLUMNS, "order")}
    chosen = []
    for name, kind in names.items():
        if name == "order":
            last = 'coalesce((SELECT max(p."order") FROM published p WHERE p.user_id = new.user_id), 0)'
            behind = "row_number() OVER (PARTITION BY user_id ORDER BY timestamp, place)"
            chosen.append(f'CAST({last} + {behind} AS BIGINT) AS "order"')
        elif name == "timestamp" and kind == "BIGINT":
            fractions = value_of(database, "SELECT coalesce(bool_or(timestamp != floor(timestamp)), false) FROM new")
            names[name] = "DOUBLE" if fractions else "BIGINT"
            chosen.append(f"CAST(timestamp AS {names[name]}) AS timestamp")
        else:
            chosen.append(f"CAST({name} AS {kind}) AS {name}")
    rows = value_of(database, "SELECT count(*) FROM new")
    if rows:
        schema = schema_of({name: DTYPES[kind] for name, kind in names.items()})
        write_batches(batches_of(database, f"SELECT {', '.join(chosen)} FROM new ORDER BY place"), schema, path)
    return int(rows)
