"""Reading one file of incoming interactions, by the rules for published tables.

A file is CSV, JSON lines or parquet, plain or compressed, with a user, an item, a rating (unless the data set has none)
and a time (if the data set has a clock). Well-known column names are understood. Bad rows are quarantined one by one. A
file of another shape, or with too many bad rows, is refused as a whole. Only temporary files are written.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa

from rarec.data.formats.table import Reading, read_role
from rarec.data.formats.unify import refuse_destroyed
from rarec.data.formats.values import AHEAD_S
from rarec.data.incoming.rows import COLUMNS, FILE_ROWS, NO_TIME, Parsed
from rarec.data.quarantine import Quarantine
from rarec.data.readers.connection import connection, emptied
from rarec.data.readers.rows import N
from rarec.data.source_spec import OWN, SourceSpec
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

SMALL = 1 << 20  # bytes of a file that is read in memory
BAD_SHARE = 0.5  # a file with a larger share of bad rows is something else than it claims to be
ADVICE = "Correct the file: it is read again as soon as its content changes."
# What a data set says of its own files, and holds for incoming ones, too.
TAKEN_OVER = {"encoding", "delimiter", "quote", "time_unit", "null_values"}


def parse_incoming(
    path: Path,
    spec: DatasetSpec,
    now_s: float,
    bad_share: float = BAD_SHARE,
    shared: duckdb.DuckDBPyConnection | None = None,
) -> Parsed:
    """Read one file. What kind of file it is, its content tells.

    Args:
        path: The file.
        spec: The data set it belongs to.
        now_s: Our clock. Events more than a day ahead of it are bad rows.
        bad_share: Share of bad rows above which the file is refused.
        shared: An empty database in memory for small files, which saves opening one; it is left empty.

    Raises:
        InputError: The file is refused.
        OSError, MemoryError: This machine cannot read the file now; there may be nothing wrong with it.
    """
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path.name}: the file is empty.")
    quarantine = Quarantine(bad_share, ADVICE)
    source = _source(spec)
    # A data set that has only an order makes it from the times. One without time ignores them.
    optional = () if spec.time == "clock" else ("timestamp",)
    if spec.rating_scale is None:
        optional = (*optional, "rating")
    keep = COLUMNS if spec.time != "none" else COLUMNS[:3]
    with (
        TemporaryDirectory(prefix="rarec-incoming-") as scratch,
        emptied(shared) if shared is not None and size <= SMALL else connection(Path(scratch)) as database,
    ):
        work = Path(scratch) / "files"
        work.mkdir()
        reading = Reading(
            database,
            spec,
            source,
            "interactions",
            quarantine,
            work,
            now_s + AHEAD_S,
            optional=optional,
            keep=keep,
            incoming=True,
        )
        read_role(reading, [path], [path.name])
        for column in ("user_id", "item_id"):
            database.execute(f"CREATE OR REPLACE TABLE ids AS SELECT DISTINCT {column} AS id FROM interactions")
            refuse_destroyed(database, f"{path.name}: {column}")
        names = {name for name, *_ in database.sql("DESCRIBE interactions").fetchall()}
        rating = "rating" if "rating" in names else "CAST('nan' AS FLOAT)"
        time = f"coalesce(timestamp / 1e6, {NO_TIME})" if "timestamp" in names else f"CAST({NO_TIME} AS DOUBLE)"
        table = database.sql(
            f"SELECT {N} AS n, user_id, item_id, coalesce({rating}, 'nan') AS rating, {time} AS timestamp "
            "FROM interactions ORDER BY 1"
        ).to_arrow_table()
    lines = reading.lines[0](table["n"].to_numpy())
    rows = table.drop_columns("n").add_column(0, "line", pa.array(np.asarray(lines, dtype=np.int64)))
    return Parsed(rows.cast(FILE_ROWS), quarantine.rows(path.name))


def _source(spec: DatasetSpec) -> SourceSpec:
    """The form of incoming files: a table, with what the data set says of its own files."""
    own = next((source for source in spec.sources if source.format in OWN), spec.sources[0])
    fields = own.model_dump(include=TAKEN_OVER, exclude_none=True)
    if "interactions" in own.columns:
        fields["columns"] = {"interactions": own.columns["interactions"]}
    return SourceSpec(format="table", **fields)
