"""The ledger by itself: judgements, generations, withdrawals, and files of an older version."""

import hashlib
import io
import signal
import sqlite3
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest
from places import child_environment

from rarec.data.incoming.ledger import Judged, Ledger, Seen, State
from rarec.data.incoming.rows import FILE_ROWS
from rarec.data.incoming.schema import FILE, VERSION
from rarec.data.incoming.withdrawal import as_parquet
from rarec.errors import InputError


def sha(content):
    return hashlib.sha256(content.encode()).hexdigest()


def rows_of(*users):
    return pa.table(
        {
            "line": pa.array(range(2, len(users) + 2), pa.int64()),
            "user_id": list(users),
            "item_id": ["i"] * len(users),
            "rating": pa.array([4.0] * len(users), pa.float32()),
            "timestamp": pa.array(range(100, len(users) + 100), pa.int64()),
        },
        schema=FILE_ROWS,
    )


def judged(name, content, *users, bad=(), kind="csv", **more):
    return Judged(Seen(name, len(content), f"stamp of {content}"), kind, sha(content), rows_of(*users), [*bad], **more)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def users(ledger, state=None):
    return ledger.read(state or ledger.state()).rows["user_id"].tolist()


def dump(ledger, query):
    with sqlite3.connect(ledger.folder / FILE) as database:
        return database.execute(query).fetchall()


def test_a_new_ledger_has_the_version_and_nothing_in_it(ledger):
    assert ledger.state() == State((), "")
    assert not (ledger.folder / FILE).exists()
    assert ledger.look([Seen("a.csv", 1, "s")], 0.0, 60.0) == ([], [Seen("a.csv", 1, "s")])
    assert dump(ledger, "PRAGMA user_version") == [(VERSION,)]
    assert ledger.state() == State((), "")


def test_one_content_is_one_entry_under_all_its_names(ledger):
    first, second = judged("a.csv", "A", "u", "v"), judged("b.csv", "A", "u", "v")
    assert ledger.record([first, second]) == [first]
    assert ledger.record([second]) == []
    assert ledger.files()["names"].tolist() == ["a.csv, b.csv"]
    assert users(ledger) == ["u", "v"]
    other = judged("a.parquet", "A", "w", kind="parquet")  # the same bytes read in another way are another entry
    assert ledger.record([other]) == [other]
    assert users(ledger) == ["u", "v", "w"]


def test_a_content_judged_again_is_the_next_generation_and_takes_the_place_of_the_one_before(ledger):
    ledger.record([judged("a.csv", "A", "u", bad=[(3, "why", "v,")])])
    states = [ledger.state()]
    for user in ("v", "w"):
        again = judged("a.csv", "A", user, again=True)
        assert ledger.record([again]) == [again]
        states.append(ledger.state())
        assert users(ledger) == [user]
    assert dump(ledger, "SELECT entry, kind, generation, superseded_by FROM entries ORDER BY entry") == [
        (1, "csv", 1, 2),
        (2, "csv", 2, 3),
        (3, "csv", 3, None),
    ]
    assert [users(ledger, state) for state in states] == [["u"], ["v"], ["w"]]  # runs that began before read on
    assert len({state.version for state in states}) == 3
    assert ledger.record([judged("b.csv", "A", "x")]) == []  # another name only
    assert dump(ledger, "SELECT name, entry FROM names") == [("a.csv", 3), ("b.csv", 3)]


def test_a_grown_file_supersedes_what_it_began_as_and_its_next_generation_does_too(ledger):
    ledger.record([judged("a.csv", "A", "u")])
    grown = judged("a.csv", "AB", "u", "v", bad=[(4, "why", "w,")], began_as=(sha("A"),))
    ledger.record([grown])
    assert users(ledger) == ["u", "v"]
    ledger.record([judged("a.csv", "AB", "u", "v", "w", again=True)])
    assert users(ledger) == ["u", "v", "w"]
    assert ledger.files()["superseded_by"].tolist()[:2] == [3, 3]
    assert ledger.withdraw(["a.csv"]) == ["a.csv"]
    assert users(ledger) == []
    # What it began as is withdrawn in its own right; the generation before stays superseded.
    assert [number == number for number in ledger.files()["superseded_by"].tolist()] == [False, True, False]
    back = judged("a.csv", "A", "u", again=True)
    assert ledger.record([back]) == [back]
    assert users(ledger) == ["u"]


# Files from before generations were kept.

OLD_TABLES = """
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
WHEN = "2026-01-02T03:04:05+00:00"
# entry, name, content, kind, users, bad rows, refused
OLD_ENTRIES = [
    (1, "a.csv", "A", "csv", "uv", 1, ""),
    (2, "b.csv", "B", "csv", "w", 0, ""),
    (3, "a.csv", "A", "csv", "uvx", 0, ""),  # judged again
    (4, "b.csv", "BB", "csv", "wy", 0, ""),  # b.csv has grown
    (5, "a.csv", "A", "csv", "xv", 0, ""),  # judged again
    (6, "p.parquet", "A", "parquet", "z", 0, ""),  # the same bytes, read in another way
    (7, "r.csv", "R", "csv", "", 0, "5 of 5 rows cannot be read"),
    (8, "d.csv", "D", "csv", "q", 0, ""),  # withdrawn
]
KEPT = ("names", "parts", "bad_rows", "looks", "withdrawals")


def old_ledger(folder, more=0):
    """A file as the old statements wrote it, entry by entry."""
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / FILE) as database:
        for statement in OLD_TABLES.split(";")[:-1]:
            database.execute(statement)
        for entry, name, content, kind, of, bad, refused in OLD_ENTRIES:
            before = database.execute(
                "UPDATE entries SET kind = kind || ' set aside ' || entry "
                "WHERE sha256 = ? AND kind = ? AND superseded_by IS NULL RETURNING entry",
                (sha(content), kind),
            ).fetchone()
            cursor = database.execute(
                "INSERT OR IGNORE INTO entries (sha256, kind, file, bytes, refused, row_count, bad_rows, first, last, "
                "recorded) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (sha(content), kind, name, len(content), refused, len(of), bad, 100, 199, WHEN),
            )
            assert cursor.lastrowid == entry
            if before:
                database.execute("UPDATE entries SET superseded_by = ? WHERE entry = ?", (entry, *before))
                database.execute("UPDATE names SET entry = ? WHERE entry = ?", (entry, *before))
            stamp = f"stamp of {content}"
            database.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", (name, entry, len(content), stamp))
            database.executemany(
                "INSERT INTO bad_rows VALUES (?, ?, ?, ?)", [(entry, 9 + row, "why", "text") for row in range(bad)]
            )
            if of:
                rows = rows_of(*of).add_column(0, "entry", pa.array([entry] * len(of), pa.int64()))
                database.execute("INSERT INTO parts (content) VALUES (?)", (as_parquet(rows),))
        database.execute("UPDATE entries SET superseded_by = 4 WHERE entry = 2")
        database.execute("INSERT INTO withdrawals VALUES (8, ?)", (WHEN,))
        database.execute("INSERT INTO looks VALUES ('new.csv', 5, 'stamp', 60.0)")
        database.executemany(
            "INSERT INTO entries (sha256, kind, file, bytes, refused, row_count, bad_rows, recorded) "
            "VALUES (?, 'csv', 'more.csv', 1, 'refused', 0, 0, ?)",
            ((sha(f"more {number}"), WHEN) for number in range(more)),
        )
    return Ledger(folder)


def contents(ledger):
    """Every row of every table, but for how generations are told apart."""
    columns = "entry, sha256, file, bytes, refused, row_count, bad_rows, first, last, recorded, superseded_by"
    found = {name: dump(ledger, f"SELECT * FROM {name} ORDER BY 1, 2") for name in KEPT}
    return {**found, "entries": dump(ledger, f"SELECT {columns} FROM entries ORDER BY entry")}


def test_an_older_ledger_keeps_every_row_and_its_version(tmp_path):
    ledger = old_ledger(tmp_path / "ledger")
    before = contents(ledger)
    assert dump(ledger, "SELECT kind FROM entries WHERE entry < 4") == [
        ("csv set aside 1",),
        ("csv",),
        ("csv set aside 3",),
    ]
    # As the old statements had it: a content that was judged again is told apart by its entry.
    lines = [f"{sha('BB')} 2", f"{sha('A')} 2 5", f"{sha('A')} 1"]
    version = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    assert ledger.state() == State((4, 5, 6), version)
    assert dump(ledger, "PRAGMA user_version") == [(VERSION,)]
    assert contents(ledger) == before
    assert dump(ledger, "SELECT kind, generation FROM entries ORDER BY entry") == [
        *(("csv", 1), ("csv", 1), ("csv", 2), ("csv", 1), ("csv", 3), ("parquet", 1), ("csv", 1), ("csv", 1))
    ]
    assert dump(ledger, "SELECT name FROM sqlite_master WHERE name LIKE '%\\_0' ESCAPE '\\'") == []
    assert users(ledger) == [*"wy", *"xv", "z"]
    assert users(ledger, State((1,), "")) == ["u", "v"]
    assert ledger.read(State((1,), "")).bad["line"].tolist() == [9]
    assert ledger.files()["entry"].tolist() == list(range(1, 9))
    assert ledger.withdrawn() == {(sha("D"), "csv"): WHEN}
    assert ledger.accepted()["a.csv"] == {1: sha("A")}
    assert ledger.look([Seen("new.csv", 5, "stamp")], 121.0, 60.0)[0] == [Seen("new.csv", 5, "stamp")]


def test_an_older_ledger_is_gone_on_with(tmp_path):
    ledger = old_ledger(tmp_path / "ledger")
    again = judged("a.csv", "A", "u", again=True)
    assert ledger.record([again]) == [again]
    assert ledger.record([judged("a.csv", "A", "u")]) == []  # known
    assert dump(ledger, "SELECT entry, generation FROM entries ORDER BY entry DESC LIMIT 1") == [(9, 4)]
    assert users(ledger) == [*"wy", "z", "u"]
    assert ledger.withdraw([sha("BB"), "p.parquet"]) == ["p.parquet", "b.csv"]
    assert users(ledger) == ["u"]
    assert users(ledger, State((1,), "")) == ["u", "v"]  # of an earlier generation, which is not withdrawn


def test_a_ledger_from_before_withdrawals_is_gone_on_with(tmp_path):
    ledger = old_ledger(tmp_path / "ledger")
    with sqlite3.connect(ledger.folder / FILE) as database:
        database.execute("DROP TABLE withdrawals")
    assert ledger.state().entries == (4, 5, 6, 8)
    assert ledger.withdraw(["a.csv"]) == ["a.csv"]
    assert ledger.state().entries == (4, 6, 8)


def test_a_migration_that_is_killed_leaves_the_file_as_it_was(tmp_path):
    ledger = old_ledger(tmp_path / "ledger", more=20_000)  # more than stays in memory
    before, kinds = contents(ledger), dump(ledger, "SELECT entry, kind FROM entries ORDER BY entry")
    kill = (
        "import os, signal, sys; from pathlib import Path; from rarec.data.incoming import ledger, schema\n"
        "def until_the_last(statements):\n"
        "    yield from statements[:-1]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "schema.FROM_0 = until_the_last(schema.FROM_0)\n"
        "ledger.Ledger(Path(sys.argv[1])).files()"
    )
    child = subprocess.run(
        [sys.executable, "-c", kill, str(ledger.folder)],
        env=child_environment(),
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert (ledger.folder / f"{FILE}-journal").stat().st_size > 0
    assert dump(ledger, "PRAGMA user_version") == [(0,)]
    assert dump(ledger, "SELECT entry, kind FROM entries ORDER BY entry") == kinds
    assert contents(ledger) == before
    assert len(ledger.files()) == 20_008
    assert contents(ledger) == before
    assert dump(ledger, "PRAGMA user_version") == [(VERSION,)]


def test_a_ledger_of_a_later_version_is_left_alone(ledger):
    ledger.record([judged("a.csv", "A", "u")])
    with sqlite3.connect(ledger.folder / FILE) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(
        InputError, match=rf"ledger\.sqlite has ledger version {VERSION + 1}, but this RaRec knows only"
    ):
        ledger.state()


def test_rows_are_kept_as_they_came(ledger):
    ledger.record([judged("a.csv", "A", "u", "v", bad=[(7, "why", "x,y")])])
    held = ledger.read(ledger.state())
    assert held.rows.drop(columns="entry").to_dict("list") == rows_of("u", "v").to_pydict()
    assert held.files[["file", "rows", "bad_rows", "first", "last"]].values.tolist() == [["a.csv", 2, 1, 100, 101]]
    assert held.bad.drop(columns="entry").values.tolist() == [["a.csv", 7, "why", "x,y"]]
    (content,) = dump(ledger, "SELECT content FROM parts")[0]
    assert pd.read_parquet(io.BytesIO(content))["user_id"].tolist() == ["u", "v"]
