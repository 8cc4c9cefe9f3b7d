"""Withdrawing contents from the ledger: which ones are meant, what goes with them, and deleting their rows."""

import io
import sqlite3

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rarec.errors import InputError

HASH_LEAST = 4  # characters of a hash that identify a content
SHOWN_HASH = 12
SHOWN = 20  # contents that an error lists


def withdrawable(database: sqlite3.Connection) -> pd.DataFrame:
    """Accepted contents that are in force or withdrawn, the newest first, with all their names."""
    return pd.read_sql(
        "SELECT entry, sha256, row_count, group_concat(name, ', ') AS names, recorded, withdrawn "
        "FROM entries JOIN names USING (entry) LEFT JOIN withdrawals USING (entry) WHERE refused = '' AND "
        "entry IN (SELECT entry FROM latest) AND (superseded_by IS NULL OR withdrawn IS NOT NULL) "
        "GROUP BY entry ORDER BY entry DESC",
        database,
    )


def identify(one: str, contents: pd.DataFrame, named: set[tuple[str, int]]) -> list[int]:
    """Entries among `withdrawable` contents that a name or the beginning of a hash stands for.

    Several are returned only if all of them are withdrawn already.

    Args:
        named: (name, entry) of every file that was seen.

    Raises:
        InputError: There is no such content, or several of which some are in force.
    """
    found = contents[contents["entry"].map(lambda entry: (one, entry) in named).astype(bool)]
    if found.empty and len(one) >= HASH_LEAST:
        found = contents[contents["sha256"].str.startswith(one.lower())]
    if len(found) == 1 or (len(found) and found["withdrawn"].notna().all()):
        return found["entry"].tolist()
    shown = found if len(found) else contents
    lines = [
        f"{row['sha256'][:SHOWN_HASH]} ({row['names']}: {row['row_count']} rows, recorded {row['recorded']}"
        + (f", withdrawn {row['withdrawn']})" if isinstance(row["withdrawn"], str) else ")")
        for row in shown.head(SHOWN).to_dict("records")
    ]
    more = f"; and {len(shown) - SHOWN} older ones" if len(shown) > SHOWN else ""
    problem = (
        f"matches {len(found)} contents; give the beginning of a hash instead"
        if len(found)
        else f"is neither the name of a file nor the beginning ({HASH_LEAST} characters or more) of a content's hash"
    )
    raise InputError(
        f"withdraw: {one!r} {problem}. Known contents: {'; '.join(lines) or 'none'}{more}. Nothing was withdrawn."
    )


def with_superseded(database: sqlite3.Connection, entry: int) -> list[int]:
    """The entry, those that it superseded, those that they superseded, and so on."""
    return [
        number
        for (number,) in database.execute(
            "WITH RECURSIVE gone (entry) AS (VALUES (?) UNION SELECT entries.entry FROM entries JOIN gone "
            "ON entries.superseded_by = gone.entry) SELECT entry FROM gone",
            (entry,),
        )
    ]


def delete_rows(database: sqlite3.Connection, gone: set[int]) -> None:
    """Delete all rows of these entries, good and bad."""
    database.executemany("DELETE FROM bad_rows WHERE entry = ?", [(number,) for number in gone])
    value_set = pa.array(sorted(gone), pa.int64())
    for (part,) in database.execute("SELECT part FROM parts").fetchall() if gone else []:
        (content,) = database.execute("SELECT content FROM parts WHERE part = ?", (part,)).fetchone()
        theirs = pc.is_in(pq.read_table(io.BytesIO(content), columns=["entry"])["entry"], value_set=value_set)
        if pc.all(theirs).as_py():
            database.execute("DELETE FROM parts WHERE part = ?", (part,))
        elif pc.any(theirs).as_py():
            rest = pq.read_table(io.BytesIO(content)).filter(pc.invert(theirs))
            database.execute("UPDATE parts SET content = ? WHERE part = ?", (as_parquet(rest), part))


def as_parquet(rows: pa.Table) -> bytes:
    """The rows as a parquet file, for a value of the table `parts`."""
    stream = io.BytesIO()
    pq.write_table(rows, stream, compression="zstd")
    return stream.getvalue()
