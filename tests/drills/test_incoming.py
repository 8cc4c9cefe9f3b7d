"""Kill -9 at 50 moments while new files are taken in: each is judged once, and the ledger ends as if undisturbed.

The moments are drawn with a seed: some time after the process began, or just after the ledger's rollback journal
appeared, which is there while the ledger is written. With RAREC_DRILLS_RECORD=1 the outcome goes to
benchmarks/results/drills.md.
"""

import collections
import itertools
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from drill_record import record_part
from places import ROOT, child_environment

from rarec.data.incoming.ledger import Ledger
from rarec.data.incoming.schema import FILE
from rarec.data.spec import builtin_specs
from resources.incoming import IncomingFiles, ingest

SEED = 5
KILLS = {"stream": 36, "growth": 14}
EARLY_FILES, LATE_FILES = 16, 8  # there before a process begins, and dropped while it works
AT_ONCE_S = 0.3  # about what it takes them in
WRITING_S = 0.006  # about what a transaction takes
pytestmark = pytest.mark.slow


class Stream:
    """Files with their content known beforehand, dropped one by one, each under a later name than the one before."""

    def __init__(self, folder, generator):
        self.folder, self.generator = folder, generator
        self.rows, self.bad, self.refused = {}, {}, set()  # by name
        self._hidden = folder / ".unfinished"

    def drop(self):
        """One more file, moved into place; some have bad rows, some are refused, some repeat an earlier one."""
        number = len(self.rows)
        name = f"{number:05}.csv"
        kind = self.generator.random()
        if kind < 0.1 and number:
            earlier = self.generator.choice(sorted(self.rows))
            self._hidden.write_bytes((self.folder / earlier).read_bytes())
            self.rows[name], self.bad[name] = [], 0
        else:
            rows = self._rows(number, self.generator.randrange(1, 400))
            bad = len(rows) if kind < 0.2 else len(rows) // 5 if kind < 0.4 else 0
            lines = [_line(row) for row in rows]
            lines[:bad] = [f"{row[0]},,{row[2]},{row[3]}" for row in rows[:bad]]
            self._hidden.write_text("user_id,item_id,rating,timestamp\n" + "".join(line + "\n" for line in lines))
            if bad == len(rows):
                self.refused.add(name)
            self.rows[name], self.bad[name] = rows[bad:], 0 if bad == len(rows) else bad
        os.rename(self._hidden, self.folder / name)

    def grow(self, name):
        """Append rows to a file that has been accepted."""
        rows = self._rows(100_000 + int(name[:5]), self.generator.randrange(1, 400))
        with (self.folder / name).open("a") as file:
            file.write("".join(_line(row) + "\n" for row in rows))
        self.rows[name] = self.rows[name] + rows

    def growable(self):
        """Names of accepted files whose content no other has."""
        copied = collections.Counter((self.folder / name).read_bytes() for name in self.rows)
        return [
            name for name in self.rows
            if name not in self.refused and copied[(self.folder / name).read_bytes()] == 1
        ]  # fmt: skip

    def _rows(self, number, count):
        return [(row % 943 + 1, row % 1682 + 1, row % 5 + 1, 893_000_000 + number * 400 + row) for row in range(count)]

    def told(self):
        """Every good row, sorted."""
        return sorted(row for rows in self.rows.values() for row in rows)


def _line(row):
    return ",".join(map(str, row))


def begin(folder, ledger):
    """A process at work."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/helpers/drill_incoming.py"), str(folder), str(ledger)],
        cwd=ROOT, env=child_environment(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def until_idle(folder, ledger):
    """Let a process take in what is there, without disturbing it."""
    process = begin(folder, ledger)
    assert process.stdout.readline() == "idle\n"
    end(process)


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def strike(folder, ledger, generator, aimed, change):
    """One life: `change` goes on beside it, then kill -9; returns what it was at, by the files that it left."""
    process = begin(folder, ledger)
    beside = threading.Thread(target=change)
    beside.start()
    journal = ledger / f"{FILE}-journal"
    time.sleep(generator.uniform(0, AT_ONCE_S))
    if aimed:
        deadline = time.monotonic() + 1
        while not journal.exists() and time.monotonic() < deadline:
            pass
        time.sleep(generator.uniform(0, WRITING_S))
    assert process.poll() is None
    end(process)
    beside.join()
    if journal.exists():
        return "ledger half written"
    return "file half read" if any((ledger / "reading").glob("*")) else "looking, or between two files"


def contents(ledger):
    """All that a ledger holds but for when: table -> rows; `parts` as the rows in force, in their order."""
    with closing(sqlite3.connect(ledger.folder / FILE)) as database:
        held = {
            name: database.execute(query).fetchall()
            for name, query in {
                "entries": "SELECT entry, sha256, kind, file, bytes, refused, row_count, bad_rows, first, last, "
                "superseded_by FROM entries ORDER BY entry",
                "names": "SELECT * FROM names ORDER BY name, entry",
                "bad_rows": "SELECT * FROM bad_rows ORDER BY entry, line",
            }.items()
        }
    state = ledger.state()
    rows = ledger.read(state).rows
    return held | {"version": state.version, "rows": list(rows.itertuples(index=False, name=None))}


def assert_same(held, wanted):
    """Equal; else the first difference is told, where pytest would compare lists of 100,000 rows for hours."""
    for name, values in wanted.items():
        if held[name] != values:
            pairs = itertools.zip_longest(held[name], values)
            pytest.fail(f"{name}: {next(pair for pair in pairs if pair[0] != pair[1])}")


def undisturbed(folder, ledger):
    source = IncomingFiles(str(folder))
    settled, _ = ledger.look(source.listing(), 0.0, 0.0)
    ingest(source, ledger, builtin_specs()["ml-100k"], settled)


def test_killed_at_50_moments_while_files_are_taken_in(tmp_path):
    generator = random.Random(SEED)
    folder = tmp_path / "incoming"
    folder.mkdir()
    stream, killed, calm = Stream(folder, generator), Ledger(tmp_path / "killed"), Ledger(tmp_path / "calm")
    fell = collections.Counter()
    aims = {part: [number % 2 == 0 for number in range(count)] for part, count in KILLS.items()}
    began = time.monotonic()

    def drop(count):
        for _ in range(count):
            stream.drop()
            time.sleep(0.01)

    for aimed in aims["stream"]:
        for _ in range(EARLY_FILES):
            stream.drop()
        fell[strike(folder, killed.folder, generator, aimed, lambda: drop(LATE_FILES))] += 1
    until_idle(folder, killed.folder)
    undisturbed(folder, calm)
    assert_same(contents(killed), contents(calm))

    growing = stream.growable()
    share = len(growing) // len(aims["growth"])
    assert share > 10
    for start, aimed in enumerate(aims["growth"]):
        mine = growing[start * share : (start + 1) * share]
        for name in mine[: share // 2]:
            stream.grow(name)

        def grow(names=mine[share // 2 :]):
            for name in names:
                stream.grow(name)
                time.sleep(0.01)

        fell[strike(folder, killed.folder, generator, aimed, grow)] += 1
    until_idle(folder, killed.folder)
    undisturbed(folder, calm)
    held = contents(killed)
    assert_same(held, contents(calm))

    seconds = time.monotonic() - began
    print(dict(fell), f"{len(stream.rows)} files, {seconds:.0f} s")
    rows = sorted((int(user), int(item), int(rating), time) for _, _, user, item, rating, time in held["rows"])
    assert_same({"rows": rows}, {"rows": stream.told()})
    accepted = [entry for entry in held["entries"] if not entry[5]]
    assert len(held["entries"]) - len(accepted) == len(stream.refused)
    assert sum(entry[-1] is not None for entry in accepted) == share * len(aims["growth"])
    in_force = {entry[0] for entry in accepted if entry[-1] is None}
    assert sum(row[0] in in_force for row in held["bad_rows"]) == sum(stream.bad.values())
    with closing(sqlite3.connect(killed.folder / FILE)) as database:
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    assert integrity == "ok"
    assert sum(fell.values()) == sum(KILLS.values())
    assert fell["ledger half written"] >= 5
    assert fell["file half read"] >= 3
    record_part(
        "Drills: what the taking in of new files survives",
        [
            "    RAREC_DRILLS_RECORD=1 python -m pytest -m slow tests/drills/test_incoming.py",
            "",
            f"Kill -9 at {sum(fell.values())} moments while {len(stream.rows)} files are taken in as they are dropped.",
            f"Some repeat an earlier one, some have bad rows, {len(stream.refused)} are refused, and",
            f"{share * len(aims['growth'])} grow after they were accepted.",
            "Afterwards the ledger equals that of one undisturbed ingestion: entries, names, bad rows, rows in their",
            "order, and the version. No file is taken in twice, and none is lost.",
            "",
            "| the kill fell while | times |",
            "|---|---|",
            *(f"| {what} | {times} |" for what, times in sorted(fell.items())),
        ],
    )
