"""Reading a data set as published: tables with our column names, their provenance, and the unreadable rows."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rarec.data.quarantine import Quarantine
from rarec.data.readers import amazon, bookcrossing, movielens, recbole
from rarec.data.sources.download import find_source
from rarec.data.sources.files import check_file, sha256_of
from rarec.data.spec import DatasetSpec, Role, SourceSpec
from rarec.errors import InputError

KEYS: dict[Role, str] = {"items": "item_id", "users": "user_id"}


@dataclass(frozen=True)
class RawTables:
    """What was read.

    Attributes:
        interactions: User_id, item_id; `rating` if published; `timestamp` (seconds) or `order` if published; and other
            published columns. Ids are int64 if all ids of that column are whole numbers, else strings.
        items: Item_id and other columns, unique by item_id; None if not published.
        users: User_id and other columns, unique by user_id; None if not published.
        quarantine: File, line, reason and text of each unreadable row.
        sources: Role, file, bytes, sha256 and number of readable rows of each file.
        incoming_rows: Number of interactions that arrived after publication (`rarec.data.incoming.merge`).
    """

    interactions: pd.DataFrame
    items: pd.DataFrame | None
    users: pd.DataFrame | None
    quarantine: pd.DataFrame
    sources: list[dict[str, str | int]]
    incoming_rows: int = 0


def read_raw(spec: DatasetSpec, folder: Path) -> RawTables:
    """Read a data set from `folder`, in the first form of `spec.sources` whose files are all there.

    Raises:
        InputError: A file is missing, empty, damaged or of another shape; has more unreadable rows than
            `quarantine_limit` allows; or is an item or user file that repeats an id.
    """
    source = find_source(spec, folder)
    if source is None:
        choices = " or ".join(", ".join(spec.files(source).values()) for source in spec.sources)
        raise InputError(f"{spec.name}: its files are not in {folder}; put {choices} there.")
    files: dict[Role, Path] = {role: folder / name for role, name in spec.files(source).items()}
    for role, name in spec.optional_files(source).items():
        if (folder / name).is_file():
            files[role] = folder / name
    for path in files.values():
        check_file(path)
    quarantine = Quarantine(spec.quarantine_limit)
    tables = _read(files, spec, source, quarantine)
    for role, key in KEYS.items():
        if role in tables:
            _check_unique(tables[role], key, files[role])
            _unify_ids(tables["interactions"], tables[role], key)
    return RawTables(
        interactions=tables["interactions"],
        items=tables.get("items"),
        users=tables.get("users"),
        quarantine=quarantine.frame(),
        sources=[
            {
                "role": role,
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
                "rows": len(tables[role]),
            }
            for role, path in files.items()
        ],
    )


def _read(
    files: dict[Role, Path], spec: DatasetSpec, source: SourceSpec, quarantine: Quarantine
) -> dict[Role, pd.DataFrame]:
    match source.format:
        case "recbole":
            return recbole.read(files, spec, source, quarantine)
        case "movielens-dat" | "synthetic":
            return movielens.read_dat(files, spec, quarantine)
        case "movielens-100k":
            return movielens.read_100k(files, spec, quarantine)
        case "movielens-csv":
            return movielens.read_csv(files, spec, quarantine)
        case "bookcrossing-csv":
            return bookcrossing.read(files, spec, quarantine)
        case "amazon-2014":
            return amazon.read(files, spec, quarantine)


def _check_unique(table: pd.DataFrame, key: str, path: Path) -> None:
    repeated = table[key].duplicated()
    if repeated.any():
        raise InputError(
            f"{path.name}: {key} {table[key][repeated].iloc[0]} is in more than one row "
            f"({int(repeated.sum())} rows repeat an id); keep one row per id."
        )


def _unify_ids(interactions: pd.DataFrame, table: pd.DataFrame, key: str) -> None:
    """Give the id column the same type in both tables: strings if either has strings."""
    if interactions[key].dtype != table[key].dtype:
        interactions[key] = interactions[key].astype("str")
        table[key] = table[key].astype("str")
