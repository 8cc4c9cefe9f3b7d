"""The local side of the store: staging, commit by rename, checksums, and what to say when the disk is full.

A writer fills a staging folder, then renames it into place. It holds a lock file meanwhile, so that others can tell a
living writer from a dead one. An artifact that is replaced is moved aside first, beside the staging folder; if the
writer is killed between the two renames, the next process to look moves it back.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rarec.errors import InputError
from resources.artifacts.manifest import MANIFEST, DamagedArtifact, FileRecord, Manifest

STAGING = ".staging"
COMMIT_LOCK = ".commit"
JUST_BEGUN_S = 60.0
FOREIGN_STAGING_AGE_S = 24 * 3600  # locks of another host may be invisible here, so its staging is kept this long

_verified: dict[Path, tuple[str, int, int]] = {}  # file -> (sha256, bytes, mtime in ns) as this process last hashed it


class StorageFull(InputError):
    """The disk filled up while an artifact was being written. Nothing of the artifact was kept."""


@contextmanager
def staging_folder(parent: Path, label: str) -> Iterator[Path]:
    """A fresh folder, removed after the block unless it was renamed away. Its lock is held meanwhile."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale_staging(parent)
    folder = parent / f"{label}-{uuid.uuid4().hex}@{socket.gethostname()}"
    lock_path = _lock_path(folder)
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def remove_stale_staging(parent: Path) -> None:
    """Delete the staging folders of dead writers, and first move back what they had moved aside.

    A writer is dead if its lock is free. On another host it must also be a day old.
    """
    for lock_path in parent.glob("*.lock"):
        folder = lock_path.with_suffix("")
        try:
            with lock_path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                age_s = time.time() - lock_path.stat().st_mtime
                old = _aside(folder)
                if age_s < JUST_BEGUN_S and not folder.exists() and not old.exists():
                    continue  # its owner is about to take the lock
                if folder.name.endswith(f"@{socket.gethostname()}") or age_s > FOREIGN_STAGING_AGE_S:
                    shutil.rmtree(folder, ignore_errors=True)
                    _put_back(old, parent.parent)
                    shutil.rmtree(old, ignore_errors=True)
                    lock_path.unlink(missing_ok=True)
        except OSError:
            continue  # locked by a living owner, or removed meanwhile


def commit(staged: Path, place: Path, manifest: Manifest, root: Path, keep_present: Callable[[], bool]) -> None:
    """Write the manifest and rename the staged folder into place.

    Args:
        root: the store's, which holds the lock: one writer commits at a time.
        keep_present: asked under the lock; True leaves the store as it is.
    """
    _write_synced(staged / MANIFEST, manifest.to_json())
    _sync_folders(staged)
    place.parent.mkdir(parents=True, exist_ok=True)
    with (root / COMMIT_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if keep_present():
            return
        old = _aside(staged)
        try:
            _rename(place, old)
            staged.rename(place)
        except BaseException:
            _rename(old, place)
            raise
        _sync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(place: Path, staging_root: Path, label: str) -> None:
    """Delete an artifact. Readers see all of it or none: it is renamed away first."""
    with staging_folder(staging_root, f"removed-{label}") as folder:
        _rename(place, folder / "artifact")


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Hash every file under the folder and flush it to disk."""
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.relative_to(folder)} is not a plain file; an artifact holds only plain files")
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            raise ValueError(f"{MANIFEST} is written by the store; give your file another name")
        if path.is_file():
            with path.open("rb") as stream:
                records[name] = FileRecord(sha256=_digest(stream), bytes=path.stat().st_size)
                os.fsync(stream.fileno())
    if not records:
        raise ValueError("no file was written; an artifact holds at least one")
    return records


def find_fault(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a local file; None if nothing. A process hashes each file once, unless it changes."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "is missing"
    if status.st_size != record.bytes:
        return f"has {status.st_size:,} bytes instead of {record.bytes:,}"
    seen = _verified.get(path)
    if seen is None or seen[1:] != (status.st_size, status.st_mtime_ns):
        with path.open("rb") as stream:
            seen = (_digest(stream), status.st_size, status.st_mtime_ns)
        _verified[path] = seen
    return None if seen[0] == record.sha256 else "was altered after it was written"


def storage_full(staged: Path, place: str) -> StorageFull:
    """The error for an artifact that did not fit on the disk of its staging folder."""
    files = [path for path in staged.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files)
    newest = max(files, key=lambda path: path.stat().st_mtime_ns).relative_to(staged) if files else MANIFEST
    return StorageFull(
        f"Disk full while writing {newest} of artifact {place}: {written:,} bytes were staged in {staged.parent}, "
        f"{shutil.disk_usage(staged.parent).free:,} bytes are free. Nothing was kept and other artifacts are intact. "
        "Free some space, or set RAREC_HOME or RAREC_ARTIFACTS to a larger disk, and run again."
    )


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _aside(staged: Path) -> Path:
    """Where the artifact that a staged one replaces is moved."""
    return staged.with_name(staged.name + ".old")


def _put_back(old: Path, root: Path) -> None:
    """Move an artifact back to its place in the store, if nothing is there."""
    try:
        manifest = Manifest.from_json((old / MANIFEST).read_text(encoding="utf-8", errors="replace"), str(old))
    except (FileNotFoundError, DamagedArtifact):
        return  # nothing was moved aside, or nobody can read it any more
    place = root / manifest.asset / manifest.partition / manifest.fingerprint
    with (root / COMMIT_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.parent.mkdir(parents=True, exist_ok=True)
        _rename(old, place)


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; False if there is no source or the target exists."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _digest(stream: IO[bytes]) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folders(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
