"""What a disk refuses, in words: it is full or write-protected, or a database cannot lie under a path."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rarec.errors import InputError, printable

PROTECTED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL_BYTES = 1 << 20

_FULL = re.compile(
    r"No space left|os error 28|Disk quota|File too large|requested and \d+ written|disk is full", re.IGNORECASE
)
# What SQLite says on a full disk if it cannot enlarge its journal or shared memory; it has other causes, too.
_VAGUE = re.compile(r"disk I/O error|unable to open database file", re.IGNORECASE)
_READ_ONLY = re.compile(r"readonly database|unable to open database file", re.IGNORECASE)
_NO_ADDRESS = re.compile(r"\?|%[0-9a-f]{2}", re.IGNORECASE)


def is_full_disk(error: BaseException) -> bool:
    """Whether the error means a full disk. Libraries say so in many ways, and not all keep the errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return says_full(str(error))


def says_full(text: str) -> bool:
    """Whether the text of an error means a full disk."""
    return bool(_FULL.search(text))


def in_words(error: BaseException, places: Mapping[str, Path]) -> str:
    """What is wrong if a disk is full or write-protected, and what to do; empty if the error has another cause.

    Args:
        places: the setting that names each folder in which the error may have occurred -> the folder; the likeliest
            comes first.
    """
    errors = list(_chain(error))
    setting, folder, free = _fullest(places)
    vague = free < FULL_BYTES and any(_VAGUE.search(str(one)) for one in errors)
    if vague or any(map(is_full_disk, errors)):
        return full_disk(setting, folder, free)
    for one in errors:
        path = _protected(one)
        for name, place in places.items():
            if path is not None and (path.is_relative_to(place) or place.is_relative_to(path)):
                return f"{path} cannot be written to. Change its permissions, or set {name} to another folder."
    if any(_READ_ONLY.search(str(one)) for one in errors):
        name, place = next(iter(places.items()))
        return f"A database in {place} cannot be written to. Change its permissions, or set {name} to another folder."
    return ""


def full_disk(setting: str, folder: Path, free: int) -> str:
    """The message for a disk that filled up."""
    also = "" if free < 64 * FULL_BYTES else ", so a quota or a limit of the file size applies"
    return (
        f"Disk full: {free / 1e6:,.1f} MB are free in {folder} ({setting}){also}. Free some space there, or set "
        f"{setting} to a folder on a larger disk, and run again."
    )


def require_room(folder: Path, setting: str, least: int) -> None:
    """Check a folder before anything is written: it is one or can be made, and its disk has ``least`` bytes free.

    Raises:
        InputError: names the setting, the folder and what to do.
    """
    place = _existing(folder)
    if not place.is_dir():
        raise InputError(f"{setting} is {folder}, but {place} is not a folder; set {setting} to a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{setting} is {folder}, but {place} cannot be written to; change its permissions, or set {setting} to "
            "another folder."
        )
    free = shutil.disk_usage(place).free
    if free < least:
        raise InputError(
            f"{setting} is {folder}, where {free / 1e6:,.1f} MB are free; at least {least / 1e6:,.0f} MB are needed. "
            f"Free some space, or set {setting} to a folder on a larger disk."
        )


def require_address(folder: Path) -> Path:
    """Raise ValueError for a folder that SQLite's addresses cannot express. Dagster and MLflow make them from paths."""
    if found := _NO_ADDRESS.search(str(folder)):
        raise ValueError(
            f"{folder} contains {found[0]!r}, under which no SQLite database can be opened; choose a folder without it"
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:  # bytes that are not text, or any letter but ASCII in the locale C
        raise ValueError(
            f"{printable(str(folder))} is not UTF-8; set PYTHONUTF8=1, or choose a folder of plain letters"
        ) from error
    return folder


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _fullest(places: Mapping[str, Path]) -> tuple[str, Path, int]:
    """The place with the least free space: its setting, folder and free bytes."""
    free = {name: shutil.disk_usage(_existing(place)).free for name, place in places.items()}
    name = min(free, key=lambda one: free[one])
    return name, places[name], free[name]


def _existing(folder: Path) -> Path:
    """The folder or, if there is none yet, the nearest one above it."""
    return next(one for one in (folder, *folder.parents) if os.path.lexists(one))


def _protected(error: BaseException) -> Path | None:
    """The file that may not be written to, if that is the error."""
    if isinstance(error, OSError) and error.errno in PROTECTED and isinstance(error.filename, str):
        return Path(error.filename)
    return None
