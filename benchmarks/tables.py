"""From a file of interactions to the clean tables: time, memory, growth, and what a few new rows cost."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pandas as pd

from benchmarks.measure import Column, Figures
from benchmarks.workloads import Setup
from rarec.data.incoming.merge import merge_incoming
from rarec.data.incoming.parse import parse_incoming
from rarec.data.incoming.rows import ROW_TYPES, Incoming
from rarec.data.raw import read_raw
from rarec.data.spec import DatasetSpec
from rarec.data.tables import build_tables
from rarec.training.engine import peak_memory_mib

SIZES = (0.25, 1, 4)  # of ml-25m
USERS_PER_ITEM = 3
PER_USER = 150
ARRIVING = 10_000
FIRST = 1_000_000_000  # seconds


def tables(setup: Setup) -> Figures:
    """A CSV file of interactions with ids of 13 characters, read and made into clean tables.

    Rows are in random order, some repeat a user and item, and 0.1 % have no rating, so they are quarantined. Each size
    runs in a process of its own, whose peak includes the libraries. The columns grow 1x, 4x and 16x. Then 10,000 rows
    arrive: they are read, checked and appended as a part.
    """
    sizes = [round(setup.effort.ctr_interactions * size) for size in SIZES]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            command = [sys.executable, "-m", "benchmarks.tables", str(size), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
            figures[f"{size / 1e6:.3g} million"] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_events(path: Path, rows: int) -> None:
    """A CSV file of random interactions."""
    users = max(10, rows // PER_USER)
    with duckdb.connect() as database:
        item = f"(({users} // {USERS_PER_ITEM} + 1) * pow((hash(i, 2) % 1000003) / 1000003, 2))::BIGINT"
        database.execute(
            f"COPY (SELECT 'user-' || lpad((hash(i, 1) % {users})::VARCHAR, 8, '0') AS user_id, "
            f"'item-' || lpad({item}::VARCHAR, 8, '0') AS item_id, "
            "CASE WHEN hash(i, 3) % 1000 > 0 THEN (1 + hash(i, 4) % 5)::VARCHAR END AS rating, "
            f"{FIRST} + (hash(i, 5) % 600000000) AS timestamp FROM range({rows}) AS t(i)) TO '{path}' (HEADER)"
        )


def measure(rows: int, folder: Path) -> Column:
    """Figures of one size."""
    path = folder / "events.csv"
    write_events(path, rows)
    spec = DatasetSpec.model_validate(
        {
            "name": "events",
            "title": "Events",
            "domain": "products",
            "rating_scale": [1, 5],
            "duplicates": "keep-last",
            "k_core": 5,
            "sources": [{"format": "table", "files": {"interactions": path.name}}],
        }
    )
    places = [folder / name for name in ("raw", "clean", "more")]
    for place in places:
        place.mkdir(exist_ok=True)
    began = time.perf_counter()
    raw = read_raw(spec, folder, places[0])
    read = time.perf_counter() - began
    clean = build_tables(spec, raw, places[1])
    built = time.perf_counter() - began - read
    arriving = folder / "new.csv"
    write_events(arriving, ARRIVING)
    began = time.perf_counter()
    parsed = parse_incoming(arriving, spec, time.time())
    rows_now = parsed.rows.to_pandas().assign(entry=1)[list(ROW_TYPES)].astype(ROW_TYPES)
    bad = pd.DataFrame(parsed.bad, columns=["line", "reason", "text"]).assign(entry=1, file="new.csv")
    merge_incoming(spec, raw, Incoming(rows_now, pd.DataFrame({"entry": [1], "file": ["new.csv"]}), bad), places[2])
    appended = time.perf_counter() - began
    column: Column = {
        "file, MiB": path.stat().st_size / 2**20,
        "clean interactions": clean.counts["interactions"],
        "users": clean.counts["users"],
        "items": clean.counts["items"],
        "bad rows": len(raw.quarantine),
        "read, s": read,
        "clean tables, s": built,
        "all of it, s": read + built,
        "interactions a second": rows / (read + built),
        "10,000 rows arrive, s": appended,
        "peak memory of the process, MiB": peak_memory_mib(),
    }
    for place in places:
        for file in place.iterdir():
            file.unlink()
    return column


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), Path(sys.argv[2]))))
