"""Lists of what a user was shown, as in MIND's behaviours: `N12-1 N7-0`, where 1 means that the user clicked.

A list is text with blanks between the entries, or a list of texts in JSON or parquet. A row with an empty list says
nothing, which is no fault.
"""

from dataclasses import replace

import duckdb
import numpy as np

from rarec.data.readers.connection import value_of
from rarec.data.readers.rows import Rows
from rarec.types import IntArray

# Our names of a column of such lists: of every entry, with its rating 1 or 0, or of those with a click.
LISTS = ("impressions", "clicks")


def spread(database: duckdb.DuckDBPyConnection, rows: Rows, lists: str, kind: str) -> Rows:
    """Rows of which each is one entry of the column `lists`, with columns `item_id` and, of impressions, `rating`.

    The column itself is empty then.

    Entries without `-1` or `-0` are kept: as impressions they have no rating, and as clicks no item, so they are bad.
    So are several entries without a blank between them.

    Args:
        database: Where the rows are.
        rows: The rows with the lists.
        lists: The column with the lists.
        kind: One of `LISTS`.
    """
    listed = rows.column(lists)
    width = len(rows.names)
    columns = ", ".join(f"'' AS {one}" if one == listed else one for one in map(rows.column, rows.names))
    label = r"regexp_extract(entry, '^[^,;|]+-([01])$', 1)"
    item = "regexp_replace(entry, '-[01]$', '')"
    if kind == "clicks":
        item, rating, chosen = f"CASE WHEN {label} != '' THEN {item} END", "", f"WHERE {label} != '0'"
    else:
        rating, chosen = f", {label} AS c{width + 1}", ""
    text = f"regexp_replace(coalesce({listed}, ''), '^\\s+|\\s+$', '', 'g')"
    entries = (
        f"CASE WHEN {text} = '' THEN [] WHEN json_valid({text}) THEN from_json({text}, '[\"VARCHAR\"]') "
        f"ELSE string_split_regex({text}, '\\s+') END"
    )
    # `row_number` over all rows keeps their order, and so does unnesting.
    database.execute("DROP TABLE IF EXISTS spread")
    database.execute(
        f"CREATE TABLE spread AS SELECT row_number() OVER () - 1 AS n, * EXCLUDE (n, entry) FROM ("
        f"SELECT n AS m, {columns}, {item} AS c{width}{rating}, n, entry FROM ("
        f"SELECT *, unnest({entries}) AS entry FROM {rows.table}) {chosen})"
    )
    of = np.asarray(database.sql("SELECT m FROM spread").fetchnumpy()["m"], dtype=np.int64)
    database.execute("ALTER TABLE spread DROP COLUMN m")
    added = ("item_id", *(("rating",) if kind == "impressions" else ()))

    def lines(n: IntArray) -> IntArray:
        return rows.lines(of[n])

    return replace(
        rows,
        table="spread",  # the rows with the lists stay, as their texts may have to be shown
        names=(*rows.names, *added),
        types=(*rows.types, *("VARCHAR",) * len(added)),
        total=value_of(database, "SELECT count(*) FROM spread") + len(rows.bad) + rows.unseen,
        lines=lines,
    )
