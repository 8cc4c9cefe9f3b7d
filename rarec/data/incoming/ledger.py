"""The ledger of incoming files: each content is judged once and its rows are kept, in one SQLite file per data set.

A content is identified by its hash, so reading a file again, under the same name or another, changes nothing. What is
recorded together is committed together: if the process dies, all of it is there or none (`schema`).

The rows of an entry never change. Instead, entries go out of force:

- A file that grew supersedes the content that it begins with.
- A content that is judged again gets a new entry of the next generation, which supersedes the one before.
- A content that is withdrawn loses its rows; the entry stays and says so (`withdrawal`).

Rows of superseded entries stay in the ledger, for runs that began earlier.
"""

import hashlib
import io
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rarec.data.incoming.rows import ROW_TYPES, Incoming, no_rows
from rarec.data.incoming.schema import FILE, connect, transaction
from rarec.data.incoming.withdrawal import as_parquet, delete_rows, identify, with_superseded, withdrawable
from rarec.errors import InputError

Kind = Literal["csv", "parquet"]

PART_ROWS = 1 << 20  # keeps a value far below SQLite's limit of 1 GB
WITHDRAWN = "entry IN (SELECT entry FROM withdrawals)"


@dataclass(frozen=True, order=True)
class Seen:
    """A file in a listing. `stamp` is the store's own text for when it was last written."""

    name: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Judged:
    """What was found in a file.

    Attributes:
        seen: The file.
        kind: How it was read.
        sha256: Hash of its content.
        rows: Its good rows, schema `FILE_ROWS`; none if it was refused.
        bad: (line, reason, text) of each bad row; none if it was refused.
        refused: Why the whole file was refused, else empty.
        began_as: Hashes of earlier contents of the same name that its content begins with.
        again: Whether this judgement replaces an earlier one of the same content.
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
    """What was in force at one moment.

    Attributes:
        entries: Numbers of the entries in force, in order of record.
        version: Hash over their contents in that order; empty if they hold no rows.
    """

    entries: tuple[int, ...]
    version: str


class Ledger:
    """The ledger in `folder`. Nothing is written until `look` or `record` has something to write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / FILE

    def look(self, files: Iterable[Seen], now: float, settle_s: float) -> tuple[list[Seen], list[Seen]]:
        """Record a listing; return the unjudged files that have settled, and those that have not.

        A file has settled if it had the same size and stamp `settle_s` seconds ago. Only times of our own clock are
        compared with each other, never with a file's stamp.
        """
        files = sorted(files)
        if not files and not self._file.is_file():
            return [], []
        with connect(self.folder) as database:
            known = set(database.execute("SELECT name, bytes, stamp FROM names"))
            before = {name: seen for name, *seen in database.execute("SELECT name, bytes, stamp, since FROM looks")}
            settled: list[Seen] = []
            settling: list[Seen] = []
            changed = []
            for file in files:
                if (file.name, file.bytes, file.stamp) in known:
                    continue
                size, stamp, since = before.pop(file.name, (None, None, now))
                if (size, stamp) != (file.bytes, file.stamp) or since > now:  # since > now: our clock was set back
                    since = now
                    changed.append((file.name, file.bytes, file.stamp, now))
                (settled if now - since >= settle_s else settling).append(file)
            if changed or before:
                with transaction(database):
                    database.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?)", changed)
                    database.executemany("DELETE FROM looks WHERE name = ?", [(name,) for name in before])
        return settled, settling

    def unjudged(self, files: Iterable[Seen]) -> list[Seen]:
        """The files that have no entry."""
        with connect(self.folder) as database:
            known = set(database.execute("SELECT name, bytes, stamp FROM names"))
        return [file for file in files if (file.name, file.bytes, file.stamp) not in known]

    def doubtful(self, files: Iterable[Seen]) -> list[Seen]:
        """The files whose content was withdrawn, refused or had bad rows, one file per content."""
        with connect(self.folder) as database:
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
        """Name -> size -> sha256 of every accepted content that was seen under the name."""
        found: dict[str, dict[int, str]] = {}
        with connect(self.folder) as database:
            for name, size, sha256 in database.execute(
                "SELECT name, entries.bytes, sha256 FROM names JOIN entries USING (entry) WHERE refused = ''"
            ):
                found.setdefault(name, {})[size] = sha256
        return found

    def record(self, judged: Iterable[Judged]) -> list[Judged]:
        """Record what was found, all of it or nothing; return what is new or was judged again."""
        new, rows = [], []
        recorded = datetime.now(UTC).isoformat(timespec="seconds")
        with connect(self.folder) as database, transaction(database):
            for one in judged:
                before, generation = _last_judgement(database, one) if one.again else (None, 0)
                number, is_new = _entry(database, one, generation + 1, recorded)
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
                    content = as_parquet(table.slice(start, PART_ROWS))
                    database.execute("INSERT INTO parts (content) VALUES (?)", (content,))
        return new

    def withdraw(self, wanted: Sequence[str]) -> list[str]:
        """Withdraw contents and delete their rows, all of them or none; return the names of those that were in force.

        With a content goes whatever it superseded, whose rows it repeats.

        Args:
            wanted: For each content a name, or the beginning of its sha256. It may already be withdrawn.

        Raises:
            InputError: One of them matches no content, or matches several of which at least one is in force.
        """
        if not self._file.is_file():
            raise InputError(f"withdraw: {wanted[0]!r} is unknown, as no file has been ingested yet.")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with connect(self.folder) as database:
            database.execute("PRAGMA secure_delete = ON")  # overwrites what is deleted
            with transaction(database):
                contents = withdrawable(database)
                named = set(database.execute("SELECT name, entry FROM names"))
                chosen = [entry for one in wanted for entry in identify(one, contents, named)]
                found = contents[contents["entry"].isin(chosen) & contents["withdrawn"].isna()]
                gone = {number for entry in found["entry"] for number in with_superseded(database, int(entry))}
                delete_rows(database, gone)
                database.executemany(
                    "INSERT OR IGNORE INTO withdrawals VALUES (?, ?)", [(number, now) for number in sorted(gone)]
                )
                # What a withdrawn content had superseded is now withdrawn in its own right: it may come back alone.
                database.executemany(
                    "UPDATE entries SET superseded_by = NULL WHERE entry = ? AND entry IN (SELECT entry FROM latest)",
                    [(number,) for number in gone],
                )
        return found["names"].tolist()

    def withdrawn(self) -> dict[tuple[str, str], str]:
        """(sha256, kind) -> since when, for every content that is withdrawn now."""
        with connect(self.folder) as database:
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
        with connect(self.folder) as database:
            found = database.execute(
                "SELECT entry, sha256, row_count, generation FROM entries "
                f"WHERE refused = '' AND superseded_by IS NULL AND NOT {WITHDRAWN} ORDER BY entry"
            ).fetchall()
        # A later generation of a content may have as many rows as the one before, but others.
        lines = [
            f"{sha256} {rows}" + (f" {entry}" if generation > 1 else "")
            for entry, sha256, rows, generation in found
            if rows
        ]
        version = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] if lines else ""
        return State(tuple(entry for entry, *_ in found), version)

    def read(self, state: State) -> Incoming:
        """The rows of `state`, by entry and line. The ledger may have grown since.

        Raises:
            InputError: Some of them have been withdrawn since.
        """
        wanted = pd.Index(state.entries, dtype="int64")
        with connect(self.folder) as database:
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
            # Asked last: what is not withdrawn now was there during all of the above.
            gone = wanted.intersection([entry for (entry,) in database.execute("SELECT entry FROM withdrawals")])
        if len(gone):
            raise InputError(f"{len(gone)} files were withdrawn just before this run could read them; run it again.")
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
        with connect(self.folder) as database:
            return pd.read_sql(
                "SELECT entry, (SELECT group_concat(name, ', ') FROM names WHERE entry = entries.entry) AS names, "
                "sha256, bytes, row_count AS rows, bad_rows, first, last, refused, superseded_by, recorded, withdrawn "
                "FROM entries LEFT JOIN withdrawals USING (entry) ORDER BY entry",
                database,
            )


def _last_judgement(database: sqlite3.Connection, one: Judged) -> tuple[int | None, int]:
    """Entry and generation of this content's judgement so far, unless a longer file superseded it; (None, 0) without.

    A superseded content has none: it is not judged again while the longer file is in force.
    """
    found = database.execute(
        "SELECT entry, generation FROM entries WHERE sha256 = ? AND kind = ? AND superseded_by IS NULL",
        (one.sha256, one.kind),
    ).fetchone()
    return (None, 0) if found is None else found


def _entry(database: sqlite3.Connection, one: Judged, generation: int, recorded: str) -> tuple[int, bool]:
    """The newest entry of this content, and whether it was created now, because this generation is new."""
    times = one.rows["timestamp"]
    span = pc.min_max(times.filter(pc.greater_equal(times, 0))).as_py()
    cursor = database.execute(
        "INSERT OR IGNORE INTO entries (sha256, kind, generation, file, bytes, refused, row_count, bad_rows, first, "
        "last, recorded) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.sha256, one.kind, generation, one.seen.name, one.seen.bytes, one.refused),
            *(len(one.rows), len(one.bad), *(None if end is None else int(end) for end in span.values()), recorded),
        ),
    )
    (number,) = database.execute(
        "SELECT max(entry) FROM entries WHERE sha256 = ? AND kind = ?", (one.sha256, one.kind)
    ).fetchone()
    return number, cursor.rowcount == 1


def _replace(database: sqlite3.Connection, before: int, number: int, refused: str) -> None:
    """Let entry `number` supersede `before`, and take over its names and whatever it had superseded."""
    database.execute(
        "UPDATE entries SET superseded_by = ? WHERE superseded_by = ? AND entry IN (SELECT entry FROM latest)",
        (None if refused else number, before),  # a refused file supersedes nothing
    )
    database.execute("UPDATE entries SET superseded_by = ? WHERE entry = ?", (number, before))
    database.execute("UPDATE names SET entry = ? WHERE entry = ?", (number, before))
