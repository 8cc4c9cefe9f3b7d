"""Reading a data set as published: tables with our column names, their provenance, and the unreadable rows.

Tables are parquet files that are never whole in memory. Reading them into pandas is for looking at them, and for tests.
"""

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq

from rarec.data.formats.finishing import finish_published
from rarec.data.formats.forms import form_before
from rarec.data.formats.published import KEYS
from rarec.data.formats.table import Reading, read_role
from rarec.data.formats.unify import unify_ids
from rarec.data.formats.values import AHEAD_S
from rarec.data.quarantine import Quarantine
from rarec.data.readers.connection import connection, parquet_scan, quoted, value_of
from rarec.data.readers.parquet_files import write_table
from rarec.data.readers.records import coarse
from rarec.data.readers.rows import FILE, HIDDEN, N
from rarec.data.source_spec import Role, SourceSpec
from rarec.data.sources.download import find_source
from rarec.data.sources.files import find_files, sha256_of
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

ROLES: tuple[Role, ...] = ("interactions", "items", "users")
INCOMING_ROWS = "incoming.parquet"  # rows that arrived after publication
REPLACED = "replaced.parquet"  # `n` of the published rows that later ones replace
READ = ("user_id", "item_id", "rating", "timestamp", '"order"')  # columns of interactions that have a meaning
BEHIND = 1 << 40  # more rows than any published file has
ID_OF: dict[Role, str] = {"items": "item_id", "users": "user_id"}


@dataclass(frozen=True)
class RawTables:
    """What was read, as parquet files in a folder.

    Attributes:
        folder: Holds `interactions.parquet`, and `items.parquet` and `users.parquet` if published. Rows that arrived
            since are in a file of their own, and so are the numbers of the published rows that they replace.
        quarantine: File, line, reason and text of each unreadable row.
        sources: Role, file, bytes, sha256 and number of readable rows of each file.
        incoming_rows: Number of interactions that arrived after publication (`rarec.data.incoming.merge`).
        warnings: Sentences on what a user should know: ids written in several ways, columns that are missing.
    """

    folder: Path
    quarantine: pd.DataFrame
    sources: list[dict[str, Any]]
    incoming_rows: int = 0
    warnings: tuple[str, ...] = ()
    kept: Any = field(default=None, repr=False, compare=False)  # a temporary folder lives as long as the tables

    @classmethod
    def of(
        cls,
        interactions: pd.DataFrame,
        items: pd.DataFrame | None,
        users: pd.DataFrame | None,
        quarantine: pd.DataFrame,
        sources: list[dict[str, Any]],
    ) -> "RawTables":
        """Tables that are in memory, written to a temporary folder."""
        kept = TemporaryDirectory(prefix="rarec-raw-")
        for role, table in zip(ROLES, (interactions, items, users), strict=True):
            if table is not None:
                table.to_parquet(Path(kept.name) / f"{role}.parquet", index=False)
        return cls(Path(kept.name), quarantine, sources, kept=kept)

    def file(self, role: Role) -> Path | None:
        """The table of a role; None if it was not published."""
        path = self.folder / f"{role}.parquet"
        return path if path.is_file() else None

    @property
    def count(self) -> int:
        """Number of interactions."""
        with connection() as database:
            rows = value_of(database, f"SELECT count(*) FROM ({self.query})")
        return int(rows)

    @cached_property
    def interactions(self) -> pd.DataFrame:
        """User_id, item_id; `rating` if published; `timestamp` (seconds) or `order` if published; other columns.

        Ids are int64 if all ids of that column are whole numbers, else strings. Times are int64, or float64 if some
        have fractions of a second.
        """
        published = pd.read_parquet(self.folder / "interactions.parquet")
        if (self.folder / REPLACED).is_file():
            published = published.drop(index=pd.Index(pd.read_parquet(self.folder / REPLACED)["n"]))
        if not (self.folder / INCOMING_ROWS).is_file():
            return published.reset_index(drop=True)
        return pd.concat([published, pd.read_parquet(self.folder / INCOMING_ROWS)], ignore_index=True)

    @property
    def published_query(self) -> str:
        """SQL for what is read of the published interactions, with the number `n` of each row."""
        published = parquet_scan(self.folder / "interactions.parquet", numbered=True)
        there = pq.read_schema(self.folder / "interactions.parquet").names
        columns = ", ".join(name for name in READ if name.strip('"') in there)
        return f"SELECT {columns}, file_row_number AS n FROM {published}"

    @property
    def query(self) -> str:
        """SQL for what is read of all interactions, with `n` in order of appearance."""
        query = self.published_query
        if (self.folder / REPLACED).is_file():
            gone = f"SELECT n FROM {parquet_scan(self.folder / REPLACED)}"
            query = f"SELECT * FROM ({query}) WHERE n NOT IN ({gone})"
        if (self.folder / INCOMING_ROWS).is_file():
            arrived = parquet_scan(self.folder / INCOMING_ROWS, numbered=True)
            behind = f"file_row_number + {BEHIND}"
            query += f" UNION ALL BY NAME SELECT * EXCLUDE file_row_number, {behind} AS n FROM {arrived}"
        return query

    @cached_property
    def items(self) -> pd.DataFrame | None:
        """Item_id and other columns, unique by item_id; None if not published."""
        return self._table("items")

    @cached_property
    def users(self) -> pd.DataFrame | None:
        """User_id and other columns, unique by user_id; None if not published."""
        return self._table("users")

    def _table(self, role: Role) -> pd.DataFrame | None:
        path = self.file(role)
        return None if path is None else pd.read_parquet(path)


def published_files(spec: DatasetSpec, source: SourceSpec, folder: Path) -> dict[Role, list[Path]]:
    """The files of each role in `folder`, optional ones if they are there.

    Raises:
        InputError: A file is missing.
    """
    files: dict[Role, list[Path]] = {}
    for role, name in spec.files(source).items():
        files[role] = find_files(folder, name)
        if not files[role]:
            raise InputError(f"{folder / name}: there is no such file; put it there.")
    for role, name in spec.optional_files(source).items():
        if found := find_files(folder, name):
            files[role] = found
    return {role: files[role] for role in ROLES if role in files}


def read_raw(spec: DatasetSpec, folder: Path, into: Path | None = None) -> RawTables:
    """Read a data set from `folder`, in the first form of `spec.sources` whose files are all there.

    Args:
        spec: The data set.
        folder: Where its files are.
        into: Existing folder that receives the tables; by default a temporary one that lives as long as the result.

    Raises:
        InputError: A file is missing, empty, damaged or of another shape; has more unreadable rows than
            `quarantine_limit` allows; or is an item or user file that repeats an id.
    """
    source = find_source(spec, folder)
    if source is None:
        choices = " or ".join(", ".join(spec.files(source).values()) for source in spec.sources)
        raise InputError(f"{spec.name}: its files are not in {folder}; put {choices} there.")
    kept = None
    if into is None:
        kept = TemporaryDirectory(prefix="rarec-raw-")
        into = Path(kept.name)
    files = published_files(spec, source, folder)
    names = _names(files)
    quarantine, warnings = Quarantine(spec.quarantine_limit), list[str]()
    rows: dict[Role, list[int]] = {}
    with TemporaryDirectory(dir=into, prefix=".reading-") as scratch, connection(Path(scratch)) as database:
        work = Path(scratch) / "files"
        work.mkdir()
        for role, paths in files.items():
            wanted = _wanted(database) if role == "items" and form_before(source, role).key else None
            reading = Reading(
                database, spec, source, role, quarantine, work, time.time() + AHEAD_S, wanted, warnings=warnings
            )
            read_role(reading, paths, names[role])
            rows[role] = reading.counts
        _unify(database, files, warnings)
        for role in files:
            finish_published(database, source, role)
            if role in ID_OF:
                _make_unique(database, role, source, files[role][0].name, warnings)
            write_table(database, role, into / f"{role}.parquet")
    return RawTables(
        folder=into,
        quarantine=quarantine.frame(),
        sources=[
            {"role": role, "file": name, "bytes": path.stat().st_size, "sha256": sha256_of(path), "rows": count}
            for role, paths in files.items()
            for path, name, count in zip(paths, names[role], rows[role], strict=True)
        ],
        warnings=tuple(warnings),
        kept=kept,
    )


def _names(files: dict[Role, list[Path]]) -> dict[Role, list[str]]:
    """Names that tell all files apart, and the roles of a file that has two."""
    every = {path for paths in files.values() for path in paths}
    plain = len({path.name for path in every}) == len(every)
    folder = os.path.commonpath([path.parent for path in every])
    found: dict[Role, list[str]] = {}
    for role, paths in files.items():
        taken = {path for other in found for path in files[other]}
        found[role] = [
            (path.name if plain else str(path.relative_to(folder))) + (f" ({role})" if path in taken else "")
            for path in paths
        ]
    return found


def _wanted(database: duckdb.DuckDBPyConnection) -> set[str]:
    return {coarse(str(one)) for (one,) in database.sql("SELECT DISTINCT item_id FROM interactions").fetchall()}


def _unify(database: duckdb.DuckDBPyConnection, files: dict[Role, list[Path]], warnings: list[str]) -> None:
    """Give ids the same spelling and type in all tables."""
    for column in ("user_id", "item_id"):
        tables = [role for role in files if column in KEYS[role]]
        where = " and ".join(files[role][0].name for role in tables)
        unify_ids(database, column, tables, where, warnings)


def _make_unique(
    database: duckdb.DuckDBPyConnection, role: Role, source: SourceSpec, file: str, warnings: list[str]
) -> None:
    """Keep one row of each id.

    Exact copies of a row are dropped. So are later rows where publishers repeat items, or where ids were unified.
    """
    key = ID_OF[role]
    others = [name for (name, *_) in database.sql(f"DESCRIBE {role}").fetchall() if name not in HIDDEN]
    same_row = ", ".join(map(quoted, others))
    database.execute(
        f"CREATE TABLE once AS SELECT * FROM {role} "
        f"QUALIFY row_number() OVER (PARTITION BY {same_row} ORDER BY {FILE}, {N}) = 1 ORDER BY {FILE}, {N}"
    )
    before, once = (value_of(database, f"SELECT count(*) FROM {name}") for name in (role, "once"))
    if once < before:
        warnings.append(f"{file}: {before - once:,} rows are exact copies of earlier ones; each counts once.")
    repeated = database.sql(
        f"SELECT {key}, count(*) FROM once GROUP BY 1 HAVING count(*) > 1 ORDER BY min({FILE}), min({N})"
    ).fetchall()
    extra = sum(count - 1 for _, count in repeated)
    if repeated:
        unified = any(sentence.startswith(f"{key}:") for sentence in warnings)
        if not (form_before(source, role).first_of_repeated or unified):
            raise InputError(
                f"{file}: {key} {repeated[0][0]} is in more than one row ({extra} rows repeat an id); keep one row per "
                "id."
            )
        warnings.append(
            f"{file}: {extra:,} rows repeat an id (first: {repeated[0][0]}); the first row of each id counts."
        )
    database.execute(f"DROP TABLE {role}")
    database.execute(
        f"CREATE TABLE {role} AS SELECT * FROM once "
        f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {FILE}, {N}) = 1 ORDER BY {FILE}, {N}"
    )
    database.execute("DROP TABLE once")
