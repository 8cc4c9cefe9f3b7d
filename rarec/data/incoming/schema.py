"""The ledger's SQLite file: its tables, transactions, and the migration of files that older versions wrote.

Each commit is complete or absent: SQLite's rollback journal and full synchronisation survive kill -9 and a power
failure, on shared folders too.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarec.errors import InputError

FILE = "ledger.sqlite"
LOCK_WAIT_S = 60.0
VERSION = 1  # kept in the file as `PRAGMA user_version`; files from before it was kept have 0

# An entry is one judgement of one content. `generation` counts the judgements of a content from 1.
TABLES = (
    "CREATE TABLE IF NOT EXISTS entries ("
    "entry INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL, kind TEXT NOT NULL, generation INTEGER NOT NULL, "
    "file TEXT NOT NULL, bytes INTEGER NOT NULL, refused TEXT NOT NULL, row_count INTEGER NOT NULL, "
    "bad_rows INTEGER NOT NULL, first INTEGER, last INTEGER, recorded TEXT NOT NULL, superseded_by INTEGER, "
    "UNIQUE (sha256, kind, generation))",
    "CREATE TABLE IF NOT EXISTS names ("
    "name TEXT NOT NULL, entry INTEGER NOT NULL, bytes INTEGER NOT NULL, stamp TEXT NOT NULL, "
    "PRIMARY KEY (name, entry)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS parts (part INTEGER PRIMARY KEY, content BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS bad_rows ("
    "entry INTEGER NOT NULL, line INTEGER NOT NULL, reason TEXT NOT NULL, text TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS bad_rows_of ON bad_rows (entry)",
    "CREATE TABLE IF NOT EXISTS looks ("
    "name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, stamp TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS withdrawals (entry INTEGER PRIMARY KEY, withdrawn TEXT NOT NULL)",
    "CREATE VIEW IF NOT EXISTS latest AS SELECT entry FROM entries AS own WHERE generation = ("
    "SELECT max(generation) FROM entries WHERE sha256 = own.sha256 AND kind = own.kind)",
)
# Version 0 had no generations. An entry that was judged again made room for the next one by its kind, which became
# "csv set aside 7", 7 being its own number.
FROM_0 = (
    "ALTER TABLE entries RENAME TO entries_0",
    *TABLES,
    "INSERT INTO entries SELECT entry, sha256, base, row_number() OVER (PARTITION BY sha256, base ORDER BY entry), "
    "file, bytes, refused, row_count, bad_rows, first, last, recorded, superseded_by FROM ("
    "SELECT *, substr(kind, 1, instr(kind || ' ', ' ') - 1) AS base FROM entries_0)",
    "DROP TABLE entries_0",
)


@contextmanager
def connect(folder: Path) -> Iterator[sqlite3.Connection]:
    """The ledger in `folder`, created or migrated if need be.

    Raises:
        InputError: A newer version of RaRec wrote the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / FILE, timeout=LOCK_WAIT_S, isolation_level=None)
    try:
        database.execute("PRAGMA synchronous = FULL")
        if _version(database) != VERSION:
            with transaction(database):
                _migrate(database, folder / FILE)
        yield database
    finally:
        database.close()


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. Other writers wait from the start, so what is read inside the block stays true."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _migrate(database: sqlite3.Connection, file: Path) -> None:
    """Bring the file to `VERSION`, inside a transaction."""
    found = _version(database)  # another process may have migrated it meanwhile
    if found == VERSION:
        return
    if found > VERSION:
        raise InputError(
            f"{file} has ledger version {found}, but this RaRec knows only version {VERSION}; use the newer RaRec "
            "that wrote it"
        )
    old = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone()
    for statement in FROM_0 if old else TABLES:
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")


def _version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)
