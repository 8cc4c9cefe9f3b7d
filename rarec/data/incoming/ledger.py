"""The ledger of incoming files: every content judged once, its rows kept, in one SQLite file a data set.

A file is known by the hash of its content, so that reading it again, under this name or another, changes nothing. What
is recorded together is committed together: a process that dies leaves all of it or none. SQLite's rollback journal
and full synchronisation keep that promise against kill -9 and a lost power supply, on shared folders too.

An entry's rows never change. An entry that turns out to be the beginning of a later one (the file has grown) is
superseded: its rows stay in the ledger and are no longer read. So is one whose content was judged again. Of a withdrawn
entry the rows are deleted; that it was there stays told.
"""

import hashlib
import io
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rarec.data.incoming.merge import ROW_TYPES, Incoming, no_rows
from rarec.errors import InputError

Kind = Literal["csv", "parquet"]

FILE = "ledger.sqlite"
LOCK_WAIT_S = 60.0
HASH_LEAST = 4  # characters of a hash that name a content
SHOWN_HASH = 12
SHOWN = 20  # contents that an error lists
PART_ROWS = 1 << 20  # a part with its index stays far below SQLite's limit of 1 GB a value

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    entry INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL, kind TEXT NOT NULL, file TEXT NOT NULL,
    bytes INTEGER NOT NULL, refused TEXT NOT NULL, row_count INTEGER NOT NULL, bad_rows INTEGER NOT NULL,
    first INTEGER, last INTEGER, recorded TEXT NOT NULL, superseded_by INTEGER, UNIQUE (sha256, kind));
CREATE TABLE IF NOT EXISTS names (
    name TEXT NOT NULL, entry INTEGER NOT NULL, bytes INTEGER NOT NULL, stamp TEXT NOT NULL,
    PRIMARY KEY (name, entry)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (part INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS bad_rows (entry INTEGER NOT NULL, line INTEGER NOT NULL, reason TEXT NOT NULL,
    text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS bad_rows_of ON bad_rows (entry);
CREATE TABLE IF NOT EXISTS looks (
    name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, stamp TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS withdrawals (entry INTEGER PRIMARY KEY, withdrawn TEXT NOT NULL);
"""
WITHDRAWN = "entry IN (SELECT entry FROM withdrawals)"


@dataclass(frozen=True, order=True)
class Seen:
    """A file as a listing shows it; `stamp` is the store's text for when it was last written."""

    name: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Judged:
    """What was found in a file.

    Attributes:
        seen: the file.
        kind: how it was read.
        sha256: of its content.
        rows: its good rows, schema `FILE_ROWS`; none of a refused file.
        bad: (line, reason, text) of its bad rows; none of a refused file.
        refused: why the file as a whole is refused, else empty.
        began_as: sha256 of earlier contents under its name that its content begins with.
        again: whether this takes the place of what was found in the same content before.
    """

    seen: Seen
    kind: Kind
    sha256: str
    rows: pa.Table
    bad: list[tuple[int, str, str]]
    refused: str = ""
    began_as: tuple[str, ...] = ()
    again: bool = False


@dataclass(frozen=True)
class State:
    """What the ledger held at one moment.

    Attributes:
        entries: numbers of the entries whose rows count, in the order in which they were recorded.
        version: hash over their contents in that order; empty where they hold no row.
    """

    entries: tuple[int, ...]
    version: str


class Ledger:
    """The ledger in `folder`; nothing is written before `look` or `record` has something to write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / FILE

    def look(self, files: Iterable[Seen], now: float, settle_s: float) -> tuple[list[Seen], list[Seen]]:
        """Take in a listing: files yet to be judged that have settled, and those that have not.

        A file has settled when it was seen with the same size and stamp `settle_s` seconds ago. Only moments of our own
        clock are compared, never a file's stamp with it.
        """
        files = sorted(files)
        if not files and not self._file.is_file():
            return [], []
        with self._connect() as database:
            known = set(database.execute("SELECT name, bytes, stamp FROM names"))
            before = {name: seen for name, *seen in database.execute("SELECT name, bytes, stamp, since FROM looks")}
            settled: list[Seen] = []
            settling: list[Seen] = []
            changed = []
            for file in files:
                if (file.name, file.bytes, file.stamp) in known:
                    continue
                size, stamp, since = before.pop(file.name, (None, None, now))
                if (size, stamp) != (file.bytes, file.stamp) or since > now:  # later than now: our clock was set back
                    since = now
                    changed.append((file.name, file.bytes, file.stamp, now))
                (settled if now - since >= settle_s else settling).append(file)
            if changed or before:
                with _transaction(database):
                    database.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?)", changed)
                    database.executemany("DELETE FROM looks WHERE name = ?", [(name,) for name in before])
        return settled, settling

    def unjudged(self, files: Iterable[Seen]) -> list[Seen]:
        """Those of the files that no entry stands for."""
        with self._connect() as database:
            known = set(database.execute("SELECT name, bytes, stamp FROM names"))
        return [file for file in files if (file.name, file.bytes, file.stamp) not in known]

    def doubtful(self, files: Iterable[Seen]) -> list[Seen]:
        """Those of the files whose content was withdrawn, or is in force and was refused or had bad rows.

        One file a content.
        """
        with self._connect() as database:
            entries = {
                tuple(seen): entry
                for entry, *seen in database.execute(
                    "SELECT entry, name, names.bytes, stamp FROM names JOIN entries USING (entry) "
                    f"WHERE superseded_by IS NULL AND (refused != '' OR bad_rows > 0 OR {WITHDRAWN})"
                )
            }
        found: dict[int, Seen] = {}
        for file in files:
            if (entry := entries.get((file.name, file.bytes, file.stamp))) is not None:
                found.setdefault(entry, file)
        return list(found.values())

    def accepted(self) -> dict[str, dict[int, str]]:
        """Name -> size -> sha256 of every accepted content that was seen under it."""
        found: dict[str, dict[int, str]] = {}
        with self._connect() as database:
            for name, size, sha256 in database.execute(
                "SELECT name, entries.bytes, sha256 FROM names JOIN entries USING (entry) WHERE refused = ''"
            ):
                found.setdefault(name, {})[size] = sha256
        return found

    def record(self, judged: Iterable[Judged]) -> list[Judged]:
        """Keep what was found, all of it or nothing; returns those whose content is new or was judged again."""
        new, rows = [], []
        recorded = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connect() as database, _transaction(database):
            for one in judged:
                before = _set_aside(database, one) if one.again else None
                number, is_new = _entry(database, one, recorded)
                if before is not None:
                    _replace(database, before, number, one.refused)
                if is_new:
                    new.append(one)
                    if len(one.rows):
                        numbers = pa.array(np.full(len(one.rows), number, np.int64))
                        rows.append(one.rows.add_column(0, "entry", numbers))
                    database.executemany(
                        "INSERT INTO bad_rows VALUES (?, ?, ?, ?)", [(number, *row) for row in one.bad]
                    )
                database.execute(
                    "INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)",
                    (one.seen.name, number, one.seen.bytes, one.seen.stamp),
                )
                if not one.refused:
                    database.executemany(
                        "UPDATE entries SET superseded_by = ? WHERE sha256 = ? AND kind = ? AND superseded_by IS NULL",
                        [(number, sha256, one.kind) for sha256 in one.began_as],
                    )
            if rows:
                table = pa.concat_tables(rows)
                for start in range(0, len(table), PART_ROWS):
                    database.execute(
                        "INSERT INTO parts (content) VALUES (?)", (_parquet(table.slice(start, PART_ROWS)),)
                    )
        return new

    def withdraw(self, wanted: Sequence[str]) -> list[str]:
        """Take contents out of force and delete their rows; returns the names of those that were in force until now.

        With a content goes what it superseded, whose rows it held too. All of it is done or nothing.

        Args:
            wanted: of each content a name, or the beginning of its sha256. One that is withdrawn already stays so.

        Raises:
            InputError: one that names no content, or several of which some are in force.
        """
        if not self._file.is_file():
            raise InputError(f"withdraw: {wanted[0]!r} names nothing; no file was taken in yet.")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connect() as database:
            database.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten in the file, too
            with _transaction(database):
                contents = pd.read_sql(
                    "SELECT entry, sha256, row_count, group_concat(name, ', ') AS names, recorded, withdrawn "
                    "FROM entries JOIN names USING (entry) LEFT JOIN withdrawals USING (entry) WHERE refused = '' AND "
                    "kind IN ('csv', 'parquet') AND (superseded_by IS NULL OR withdrawn IS NOT NULL) "
                    "GROUP BY entry ORDER BY entry DESC",
                    database,
                )
                named = set(database.execute("SELECT name, entry FROM names"))
                chosen = [entry for one in wanted for entry in _named(one, contents, named)]
                found = contents[contents["entry"].isin(chosen) & contents["withdrawn"].isna()]
                gone = {number for entry in found["entry"] for number in _with_superseded(database, int(entry))}
                _delete_rows(database, gone)
                database.executemany(
                    "INSERT OR IGNORE INTO withdrawals VALUES (?, ?)", [(number, now) for number in sorted(gone)]
                )
                # What was superseded is withdrawn by itself now: it may come again without what it had grown into.
                database.executemany(
                    "UPDATE entries SET superseded_by = NULL WHERE entry = ? AND kind IN ('csv', 'parquet')",
                    [(number,) for number in gone],
                )
        return found["names"].tolist()

    def withdrawn(self) -> dict[tuple[str, str], str]:
        """(sha256, kind) -> since when, of every content that is withdrawn now."""
        with self._connect() as database:
            return {
                (sha256, kind): since
                for sha256, kind, since in database.execute(
                    "SELECT sha256, kind, withdrawn FROM entries JOIN withdrawals USING (entry) "
                    "WHERE superseded_by IS NULL"
                )
            }

    def state(self) -> State:
        """What is in force now."""
        if not self._file.is_file():
            return State((), "")
        with self._connect() as database:
            found = database.execute(
                "SELECT entry, sha256, row_count, (SELECT max(entry) FROM entries AS earlier WHERE earlier.sha256 = "
                "entries.sha256 AND earlier.kind LIKE entries.kind || ' set aside %') FROM entries "
                f"WHERE refused = '' AND superseded_by IS NULL AND NOT {WITHDRAWN} ORDER BY entry"
            ).fetchall()
        # The same content judged again may have as many rows and yet others.
        lines = [f"{sha256} {rows}" + (f" {entry}" if before else "") for entry, sha256, rows, before in found if rows]
        version = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] if lines else ""
        return State(tuple(entry for entry, *_ in found), version)

    def read(self, state: State) -> Incoming:
        """The rows of that state, in the order of their entries and lines; the ledger may have grown meanwhile.

        Raises:
            InputError: some of them were withdrawn meanwhile.
        """
        wanted = pd.Index(state.entries, dtype="int64")
        with self._connect() as database:
            parts = [
                part[part["entry"].isin(wanted)]
                for (content,) in database.execute("SELECT content FROM parts ORDER BY part")
                if len(part := pd.read_parquet(io.BytesIO(content)))
            ]
            entries = pd.read_sql(
                "SELECT entry, file, bytes, sha256, row_count AS rows, bad_rows, first, last FROM entries", database
            )
            bad = pd.read_sql(
                "SELECT entry, file, line, reason, text FROM bad_rows JOIN entries USING (entry) ORDER BY entry, line",
                database,
            )
            # Asked last: what is not withdrawn now was there all the time.
            gone = wanted.intersection([entry for (entry,) in database.execute("SELECT entry FROM withdrawals")])
        if len(gone):
            raise InputError(f"{len(gone)} files were withdrawn while this run was about to read them; run it again.")
        rows = pd.concat([no_rows(), *parts], ignore_index=True)
        return Incoming(
            rows=rows.astype(ROW_TYPES),
            files=entries[entries["entry"].isin(wanted)].reset_index(drop=True),
            bad=bad[bad["entry"].isin(wanted)].reset_index(drop=True),
        )

    def files(self) -> pd.DataFrame:
        """Every entry, accepted or refused, with all names its content was seen under; in order of record."""
        if not self._file.is_file():
            return pd.DataFrame()
        with self._connect() as database:
            return pd.read_sql(
                "SELECT entry, (SELECT group_concat(name, ', ') FROM names WHERE entry = entries.entry) AS names, "
                "sha256, bytes, row_count AS rows, bad_rows, first, last, refused, superseded_by, recorded, withdrawn "
                "FROM entries LEFT JOIN withdrawals USING (entry) ORDER BY entry",
                database,
            )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        self.folder.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._file, timeout=LOCK_WAIT_S, isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = FULL")
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'withdrawals'").fetchone():
                with _transaction(database):
                    for statement in SCHEMA.split(";")[:-1]:
                        database.execute(statement)
            yield database
        finally:
            database.close()


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; other writers wait from the start, so that what is read in the block stays true."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _entry(database: sqlite3.Connection, one: Judged, recorded: str) -> tuple[int, bool]:
    """Number of the entry of this content, and whether it was made now."""
    times = one.rows["timestamp"]
    span = pc.min_max(times.filter(pc.greater_equal(times, 0))).as_py()
    cursor = database.execute(
        "INSERT OR IGNORE INTO entries (sha256, kind, file, bytes, refused, row_count, bad_rows, first, last, "
        "recorded) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.sha256, one.kind, one.seen.name, one.seen.bytes, one.refused),
            *(len(one.rows), len(one.bad), span["min"], span["max"], recorded),
        ),
    )
    (number,) = database.execute(
        "SELECT entry FROM entries WHERE sha256 = ? AND kind = ?", (one.sha256, one.kind)
    ).fetchone()
    return number, cursor.rowcount == 1


def _set_aside(database: sqlite3.Connection, one: Judged) -> int | None:
    """Let the content be entered anew; returns the entry in force until now."""
    # What is read meanwhile, of a state from before, keeps its entry and its rows; its kind alone makes room.
    found = database.execute(
        "UPDATE entries SET kind = kind || ' set aside ' || entry "
        "WHERE sha256 = ? AND kind = ? AND superseded_by IS NULL RETURNING entry",
        (one.sha256, one.kind),
    ).fetchone()
    return None if found is None else int(found[0])


def _replace(database: sqlite3.Connection, before: int, number: int, refused: str) -> None:
    """Let the entry ``number`` take the place of ``before``, its names, and what that had superseded."""
    database.execute(
        "UPDATE entries SET superseded_by = ? WHERE superseded_by = ? AND kind IN ('csv', 'parquet')",
        (None if refused else number, before),  # a refused file supersedes nothing
    )
    database.execute("UPDATE entries SET superseded_by = ? WHERE entry = ?", (number, before))
    database.execute("UPDATE names SET entry = ? WHERE entry = ?", (number, before))


def _named(one: str, contents: pd.DataFrame, named: set[tuple[str, int]]) -> list[int]:
    """The entry of that name, or whose hash begins so; of several that are all withdrawn already, all."""
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
    more = f"; and {len(shown) - SHOWN} before these" if len(shown) > SHOWN else ""
    problem = (
        f"stands for {len(found)} contents, so give the beginning of one's hash"
        if len(found)
        else f"is neither a file's name nor the beginning ({HASH_LEAST} characters or more) of a content's hash"
    )
    raise InputError(
        f"withdraw: {one!r} {problem}. There is {'; '.join(lines) or 'none'}{more}. Nothing was withdrawn."
    )


def _with_superseded(database: sqlite3.Connection, entry: int) -> list[int]:
    """The entry, and those that it superseded, and so on."""
    return [
        number
        for (number,) in database.execute(
            "WITH RECURSIVE gone (entry) AS (VALUES (?) UNION SELECT entries.entry FROM entries JOIN gone "
            "ON entries.superseded_by = gone.entry) SELECT entry FROM gone",
            (entry,),
        )
    ]


def _delete_rows(database: sqlite3.Connection, gone: set[int]) -> None:
    """Delete what is kept of the entries, good rows and bad."""
    database.executemany("DELETE FROM bad_rows WHERE entry = ?", [(number,) for number in gone])
    value_set = pa.array(sorted(gone), pa.int64())
    for (part,) in database.execute("SELECT part FROM parts").fetchall() if gone else []:
        (content,) = database.execute("SELECT content FROM parts WHERE part = ?", (part,)).fetchone()
        theirs = pc.is_in(pq.read_table(io.BytesIO(content), columns=["entry"])["entry"], value_set=value_set)
        if pc.all(theirs).as_py():
            database.execute("DELETE FROM parts WHERE part = ?", (part,))
        elif pc.any(theirs).as_py():
            rest = pq.read_table(io.BytesIO(content)).filter(pc.invert(theirs))
            database.execute("UPDATE parts SET content = ? WHERE part = ?", (_parquet(rest), part))


def _parquet(rows: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(rows, stream, compression="zstd")
    return stream.getvalue()
