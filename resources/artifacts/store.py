"""Artifact store: every artifact lies at a path made from asset, partition and fingerprint, whole or not at all.

Local layout    root/<asset>/<partition>/<fingerprint>/{manifest.json, files...}; staging in root/.staging
Remote layout   root/<asset>/<partition>/<fingerprint>/{manifest.json, <data version>/files...}

A local artifact is committed by renaming its folder into place, a remote one by uploading its manifest last. One that
is replaced is moved aside first; what a killed writer left there is put back. Remote files lie under their data
version: two writers, or a rebuild during a read, never mix files of different content.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import dagster as dg
import fsspec
from pydantic import Field, ValidationError

from rarec.config import Settings
from rarec.errors import InputError, one_line

T = TypeVar("T")

MANIFEST = "manifest.json"
STAGING = ".staging"
COMMIT_LOCK = ".commit"
LOOK_AGAIN_S = 2.0  # between attempts while a remote store is away
# What a remote store raises that is no matter of time: it says no, or the request is wrong.
FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
)
FINAL_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ImportError)
JUST_BEGUN_S = 60.0
FOREIGN_STAGING_AGE_S = 24 * 3600  # staging of another host is left alone this long: its locks may be invisible here

progress_log = logging.getLogger("rarec.progress")  # `make run` shows it in the terminal

_DIGEST = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_FULL_DISK = re.compile(r"No space left|os error 28|Disk quota|File too large|requested and \d+ written", re.IGNORECASE)
_verified: dict[Path, tuple[str, int, int]] = {}  # file -> (sha256, bytes, mtime in ns) as last hashed by this process


class DamagedArtifact(InputError):
    """A committed artifact lacks a file or holds an altered one."""


class StorageFull(InputError):
    """The disk filled up while an artifact was being written; nothing of it was kept."""


def canonical_json(value: Any) -> str:
    """One text per JSON value: sorted keys, no white space; NaN and non-JSON types are refused."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # keys become text before they are sorted
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(asset: str, code_version: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Identity of an artifact: 32 hex digits over asset, code version, resolved configuration, input data versions."""
    identity = {"asset": asset, "code_version": code_version, "config": dict(config), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:32]


def _check_identity(
    given: str, asset: str, code_version: str, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    if given != fingerprint(asset, code_version, config, inputs):
        raise ValueError(
            f"fingerprint {given} of {asset} was not made from this code version, configuration and inputs"
        )


class FileRecord(Settings):
    """Checksum of one file."""

    sha256: str = Field(description="Hex digest of the content.")
    bytes: int = Field(description="Size.")


class Manifest(Settings):
    """What an artifact is made of and made from."""

    asset: str = Field(description="Asset name.")
    partition: str = Field(description="Data set.")
    fingerprint: str = Field(description="Identity, see `fingerprint()`.")
    code_version: str = Field(description="Version of the producing code.")
    config: dict[str, Any] = Field(description="Resolved configuration.")
    inputs: dict[str, str] = Field(description="Data version of each input, by input name.")
    created: str = Field(description="UTC time of commit, ISO 8601.")
    metadata: dict[str, Any] = Field(description="Figures the producer wants to keep, such as row counts.")
    files: dict[str, FileRecord] = Field(description="Every file, by its path relative to the artifact.")

    @property
    def data_version(self) -> str:
        """Hash of the content hashes: equal files, equal data version, whatever they were made from."""
        content = {name: record.sha256 for name, record in self.files.items()}
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """Text with a checksum over itself."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "checksum": _text_digest(canonical_json(body))}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Parse and check; raises DamagedArtifact naming `where`."""
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            manifest = cls.model_validate(body)
        except (ValueError, ValidationError, AttributeError, KeyError) as error:
            raise _damaged(where, "cannot be read") from error
        names = [PurePosixPath(name) for name in manifest.files]
        if checksum != _text_digest(canonical_json(body)) or any(n.is_absolute() or ".." in n.parts for n in names):
            raise _damaged(where, "was altered after it was written")
        return manifest


class Artifact:
    """A committed artifact, read through its manifest; remote files are fetched into the cache when asked for."""

    def __init__(self, manifest: Manifest, folder: Path, remote: "_Remote | None" = None) -> None:
        self._manifest = manifest
        self._folder = folder
        self._remote = remote

    @property
    def fingerprint(self) -> str:
        """Identity: see `fingerprint()`."""
        return self._manifest.fingerprint

    @property
    def data_version(self) -> str:
        """Hash of the content hashes of all files."""
        return self._manifest.data_version

    @property
    def metadata(self) -> dict[str, Any]:
        """What the producer recorded."""
        return self._manifest.metadata

    @property
    def manifest(self) -> Manifest:
        """The whole record."""
        return self._manifest

    @property
    def path(self) -> Path:
        """Local folder with every file, each one verified (and fetched first where the store is remote)."""
        for name in self._manifest.files:
            self.file(name)
        return self._folder

    def file(self, name: str) -> Path:
        """Verified local path of one file; DamagedArtifact names the file that is missing or altered."""
        record = self._manifest.files.get(name)
        if record is None:
            known = ", ".join(sorted(self._manifest.files)) or "none"
            raise InputError(f"Artifact {self._folder} has no file '{name}'; its files are: {known}.")
        path = self._folder / name
        if self._remote is not None and _fault(path, record):
            self._remote.download(f"{self.data_version}/{name}", path)
        fault = _fault(path, record)
        if fault:
            raise _damaged(
                str(path) if self._remote is None else self._remote.url(f"{self.data_version}/{name}"), fault
            )
        return path

    def check_sizes(self) -> None:
        """Cheap test that every file is in the store with its recorded size; raises DamagedArtifact."""
        for name, record in self._manifest.files.items():
            if self._remote is None:
                path = self._folder / name
                where, size = str(path), path.stat().st_size if path.is_file() else None
            else:
                stored = f"{self.data_version}/{name}"
                where, size = self._remote.url(stored), self._remote.size(stored)
            if size != record.bytes:
                raise _damaged(
                    where, "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
                )


@dataclass(frozen=True)
class Survey:
    """What a store holds.

    Attributes:
        manifests: of all artifacts whose manifest can be read.
        damaged: partition -> paths of its manifests that cannot: what these artifacts were made from is not known.
        leftovers: content in a remote store that no manifest names, as a rebuild came to other content, or an upload
            or a removal was cut short. Folder below the root -> its size, and when its newest file was written, if
            the file system tells.
    """

    manifests: list[Manifest]
    damaged: dict[str, list[str]]
    leftovers: dict[str, tuple[int, float | None]]


class Draft:
    """An artifact being written: put files under `path`, figures into `metadata`; after the block see `artifact`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._artifact: Artifact | None = None

    @property
    def artifact(self) -> Artifact:
        """The committed artifact."""
        if self._artifact is None:
            raise RuntimeError(
                "the artifact is committed when the `with store.write(...)` block ends; read it afterwards"
            )
        return self._artifact


class ArtifactStore(dg.ConfigurableResource):
    """Finds, reads and writes artifacts in a local folder or under any fsspec URL."""

    root: str = Field(description="Local folder or fsspec URL (s3://bucket/rarec, gs://..., memory://...).")
    cache: str = Field(description="Local folder for copies of remote artifacts and for staging before an upload.")
    wait_s: float = Field(
        default=120,
        ge=0,
        description="How long, each time, a remote store that does not answer is waited for before the asset fails.",
    )

    def find(self, asset: str, partition: str, fingerprint: str) -> Artifact | None:
        """The artifact, or None if there is none.

        Local files are hashed (once per process), remote ones only compared by size: they are hashed when fetched.
        Raises DamagedArtifact for a damaged one; `write` replaces it.
        """
        return self._whole(self._look(asset, partition, fingerprint))

    def open(self, asset: str, partition: str, fingerprint: str) -> Artifact:
        """The artifact for reading; files are verified as they are asked for. Raises InputError if there is none."""
        artifact = self._look(asset, partition, fingerprint)
        if artifact is None:
            place = self._place(asset, partition, fingerprint)
            raise InputError(f"There is no artifact {place}; materialise {asset} for partition {partition} first.")
        return artifact

    @contextmanager
    def write(
        self,
        asset: str,
        partition: str,
        fingerprint: str,
        *,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        code_version: str,
        replace: bool = False,
    ) -> Iterator[Draft]:
        """Stage files in a fresh folder and commit them together when the block ends without an exception.

        An intact artifact already there (another process was faster) stays unless `replace`; a damaged one is replaced.
        Raises StorageFull when the disk is full. After an exception the store is as it was.
        """
        _check_identity(fingerprint, asset, code_version, config, inputs)
        place = self._place(asset, partition, fingerprint)
        with _staging_folder(self._staging_root, f"{asset}-{fingerprint[:12]}") as folder:
            draft = Draft(folder)
            try:
                yield draft
                manifest = Manifest(
                    asset=asset,
                    partition=partition,
                    fingerprint=fingerprint,
                    code_version=code_version,
                    config=json.loads(canonical_json(dict(config))),
                    inputs=dict(inputs),
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    metadata=json.loads(canonical_json(draft.metadata)),
                    files=_record_files(folder),
                )
                commit = self._commit_local if self._is_local else self._commit_remote
                commit(folder, manifest, replace)
            except Exception as error:
                # A failure that is final has said what is to be done, perhaps about another disk (a checkpoint's).
                if _is_full_disk(error) and getattr(error, "allow_retries", not isinstance(error, InputError)):
                    raise _storage_full(folder, place) from error
                raise
            draft._artifact = self.open(asset, partition, fingerprint)

    def manifests(self, asset: str = "[!.]*", partition: str = "*") -> Iterator[Manifest]:
        """Those of all artifacts, or of an asset's in a partition; damaged ones are passed over."""
        return (one for _, one in self._read_manifests(asset, partition) if isinstance(one, Manifest))

    def survey(self) -> "Survey":
        """All that the store holds, by one reading of its manifests."""
        content = self._content()
        # Read after that: what was committed meanwhile is named.
        manifests: list[Manifest] = []
        damaged: dict[str, list[str]] = {}
        for path, one in self._read_manifests():
            if isinstance(one, Manifest):
                manifests.append(one)
                content.pop(f"{one.asset}/{one.partition}/{one.fingerprint}/{one.data_version}", None)
            else:
                damaged.setdefault(path.split("/")[-3], []).append(path)
        leftovers: dict[str, tuple[int, float | None]] = {}
        for folder, infos in content.items():
            times = [time for time in map(written_at, infos) if time is not None]
            newest = max(times) if len(times) == len(infos) else None
            leftovers[folder] = sum(int(info["size"]) for info in infos), newest
        return Survey(manifests, damaged, leftovers)

    def _read_manifests(
        self, asset: str = "[!.]*", partition: str = "*"
    ) -> Iterator[tuple[str, Manifest | DamagedArtifact]]:
        if self._is_local:
            _remove_stale_staging(self._staging_root)
        fs, root = fsspec.core.url_to_fs(str(self._local_root) if self._is_local else self.root)
        for path in sorted(fs.glob(f"{root}/{asset}/{partition}/*/{MANIFEST}")):
            text = bytes(fs.cat_file(path)).decode("utf-8", errors="replace")
            try:
                yield path, Manifest.from_json(text, path)
            except DamagedArtifact as error:
                yield path, error

    def _content(self) -> dict[str, list[Mapping[str, Any]]]:
        """Data version's folder below the root, of a remote store, to what the file system tells of its files."""
        if self._is_local:
            return {}
        fs, root = fsspec.core.url_to_fs(self.root)
        fs.invalidate_cache()
        found: dict[str, list[Mapping[str, Any]]] = {}
        for path, info in fs.find(root, detail=True).items():
            parts = path.removeprefix(root).strip("/").split("/")  # asset, partition, fingerprint, data version, file
            if len(parts) > 4 and _DIGEST.fullmatch(parts[2]) and _DIGEST.fullmatch(parts[3]):
                found.setdefault("/".join(parts[:4]), []).append(info)
        return found

    def remove_leftover(self, folder: str) -> None:
        """Delete a folder that `survey` found among the leftovers."""
        fs, root = fsspec.core.url_to_fs(self.root)
        fs.rm(f"{root}/{folder}", recursive=True)

    def with_content(
        self, asset: str, partition: str, data_version: str, identities: Collection[str]
    ) -> Artifact | None:
        """The artifact with this content: one of these fingerprints, else the newest; None if there is none."""
        found = [one for one in self.manifests(asset, partition) if one.data_version == data_version]
        best = max(found, key=lambda one: (one.fingerprint in identities, one.created), default=None)
        return None if best is None else self.open(asset, partition, best.fingerprint)

    def remove(self, asset: str, partition: str, fingerprint: str) -> None:
        """Delete an artifact: at one moment it is whole, at the next no reader sees it."""
        place = self._place(asset, partition, fingerprint)
        if self._is_local:
            with _staging_folder(self._staging_root, f"removed-{fingerprint[:12]}") as folder:
                _rename(Path(place), folder / "artifact")
        else:
            artifact = self._load(asset, partition, fingerprint)
            fs, path = fsspec.core.url_to_fs(place)
            fs.rm_file(f"{path}/{MANIFEST}")  # first: without it the rest is nothing
            if artifact is not None:
                fs.rm(f"{path}/{artifact.data_version}", recursive=True)
            shutil.rmtree(Path(self.cache) / asset / partition / fingerprint, ignore_errors=True)

    def _commit_local(self, folder: Path, manifest: Manifest, replace: bool) -> None:
        _write_synced(folder / MANIFEST, manifest.to_json())
        _sync_folders(folder)
        final = Path(self._place(manifest.asset, manifest.partition, manifest.fingerprint))
        final.parent.mkdir(parents=True, exist_ok=True)
        # One writer at a time, or a second one could move aside what the first has committed since the second looked.
        with (self._local_root / COMMIT_LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not replace and self._intact(manifest):
                return
            old = folder.with_name(folder.name + ".old")
            try:
                _rename(final, old)
                folder.rename(final)
            except BaseException:
                _rename(old, final)
                raise
            _sync_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _commit_remote(self, folder: Path, manifest: Manifest, replace: bool) -> None:
        if not replace and self._intact(manifest):
            return
        remote = self._remote(manifest.asset, manifest.partition, manifest.fingerprint)
        # A failed upload leaves files without a manifest, which no reader sees; they are not deleted while they are
        # young (see `survey`), because a second writer of the same content may be counting on them.
        for name in manifest.files:
            remote.upload(folder / name, f"{manifest.data_version}/{name}")
        remote.write_text(MANIFEST, manifest.to_json())

    def _intact(self, manifest: Manifest) -> bool:
        # Not by `find`, which may ask for the lock under which this is called.
        try:
            return self._whole(self._load(manifest.asset, manifest.partition, manifest.fingerprint)) is not None
        except DamagedArtifact:
            return False

    def _whole(self, artifact: Artifact | None) -> Artifact | None:
        if artifact is not None:
            artifact.check_sizes()
            if self._is_local:
                _ = artifact.path
        return artifact

    def _look(self, asset: str, partition: str, fingerprint: str) -> Artifact | None:
        """The artifact, put back first where a killed writer had moved it aside."""
        artifact = self._load(asset, partition, fingerprint)
        if artifact is None and self._is_local:
            _remove_stale_staging(self._staging_root)
            artifact = self._load(asset, partition, fingerprint)
        return artifact

    def _load(self, asset: str, partition: str, fingerprint: str) -> Artifact | None:
        place = self._place(asset, partition, fingerprint)
        if self._is_local:
            remote = None
            folder = Path(place)
            path = folder / MANIFEST
            if not folder.is_dir():
                return None
            if not path.is_file():
                raise _damaged(str(path), "is missing")
            where, text = str(path), path.read_text(encoding="utf-8", errors="replace")
        else:
            remote = self._remote(asset, partition, fingerprint)
            stored = remote.read_text(MANIFEST)
            if stored is None:
                return None
            where, text = remote.url(MANIFEST), stored
        manifest = Manifest.from_json(text, where)
        if (manifest.asset, manifest.partition, manifest.fingerprint) != (asset, partition, fingerprint):
            raise _damaged(where, "belongs to another artifact")
        if remote is not None:
            folder = Path(self.cache) / asset / partition / fingerprint / manifest.data_version
        return Artifact(manifest, folder, remote)

    @property
    def _is_local(self) -> bool:
        return "://" not in self.root or self.root.startswith(("file://", "local://"))

    @property
    def _local_root(self) -> Path:
        return Path(re.sub(r"^(file|local)://", "", self.root)).expanduser().absolute()

    @property
    def _staging_root(self) -> Path:
        return (self._local_root if self._is_local else Path(self.cache).expanduser().absolute()) / STAGING

    def _place(self, asset: str, partition: str, fingerprint: str) -> str:
        for kind, name in (("asset", asset), ("partition", partition), ("fingerprint", fingerprint)):
            if not _NAME.fullmatch(name):
                raise InputError(
                    f"'{name}' cannot be used as {kind} name: use lower-case letters, digits, '.', '_' and '-', "
                    "starting with a letter or digit."
                )
        if self._is_local:
            return str(self._local_root / asset / partition / fingerprint)
        return f"{self.root.rstrip('/')}/{asset}/{partition}/{fingerprint}"

    def _remote(self, asset: str, partition: str, fingerprint: str) -> "_Remote":
        return _Remote(self._place(asset, partition, fingerprint), self.wait_s)


class _Remote:
    """The folder of one artifact in a remote file system, which is waited for while it does not answer."""

    def __init__(self, url: str, wait_s: float) -> None:
        self._url = url
        self._wait_s = wait_s
        self._fs, self._path = fsspec.core.url_to_fs(url)

    def _patiently(self, operation: Callable[[], T]) -> T:
        """What the operation gives, tried again while the store is away; it must do no harm when done twice.

        Raises:
            dg.Failure: the store did not answer for `wait_s` seconds.
        """
        deadline: float | None = None
        while True:
            try:
                return operation()
            except Exception as error:  # each kind of store has errors of its own
                if isinstance(error, FINAL) or _is_full_disk(error):
                    raise
                if isinstance(error, FINAL_FAULTS) and not isinstance(error, OSError):
                    raise
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self._wait_s
                    text = f"  {self._url} is away ({one_line(error)}); waiting for it at most {self._wait_s:.0f} s"
                    progress_log.info("%s", text)
                if now >= deadline:
                    raise dg.Failure(
                        f"The artifact store did not answer for {self._wait_s:.0f} s: {self._url}: "
                        f"{type(error).__name__}: {one_line(error)}. Nothing half-written is visible there; run again "
                        "when it is back: trainings go on from their checkpoints"
                    ) from error
            time.sleep(min(LOOK_AGAIN_S, max(0.0, deadline - now)))

    def url(self, name: str) -> str:
        return f"{self._url}/{name}"

    def size(self, name: str) -> int | None:
        try:
            return int(self._patiently(lambda: self._fs.info(f"{self._path}/{name}"))["size"])
        except FileNotFoundError:
            return None

    def read_text(self, name: str) -> str | None:
        self._fs.invalidate_cache()
        try:
            text = self._patiently(lambda: self._fs.cat_file(f"{self._path}/{name}"))
            return bytes(text).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write_text(self, name: str, text: str) -> None:
        self._patiently(lambda: self._fs.pipe_file(f"{self._path}/{name}", text.encode()))

    def upload(self, source: Path, name: str) -> None:
        target = f"{self._path}/{name}"

        def put() -> None:
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(source), target)

        self._patiently(put)

    def download(self, name: str, target: Path) -> None:
        """Fetch beside the target and rename, so that a broken download is never taken for the file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            self._patiently(lambda: self._fs.get_file(f"{self._path}/{name}", str(partial)))
            partial.replace(target)
        except FileNotFoundError as error:
            raise _damaged(self.url(name), "is missing") from error
        except OSError as error:
            if _is_full_disk(error):
                raise StorageFull(
                    f"Disk full while fetching {self.url(name)} ({self.size(name) or 0:,} bytes) to {target}. "
                    "Free some space (the cache folder may be deleted at any time) and run again."
                ) from error
            raise
        finally:
            partial.unlink(missing_ok=True)


def written_at(info: Mapping[str, Any]) -> float | None:
    """When a file was written (Unix time), if its file system tells; each has a name of its own for it."""
    told = next((info[name] for name in ("LastModified", "last_modified", "mtime", "created") if name in info), None)
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, int | float) else None


@contextmanager
def _staging_folder(parent: Path, label: str) -> Iterator[Path]:
    """A fresh folder that is gone after the block unless renamed away; a held lock file tells that its owner lives."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_staging(parent)
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


def _remove_stale_staging(parent: Path) -> None:
    """Delete staging whose owner died: its lock is free, and it is this host's or has not been touched for a day.

    What the owner had moved aside is put back first.
    """
    for lock_path in parent.glob("*.lock"):
        folder = lock_path.with_suffix("")
        try:
            with lock_path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                age_s = time.time() - lock_path.stat().st_mtime
                old = folder.with_name(folder.name + ".old")
                if age_s < JUST_BEGUN_S and not folder.exists() and not old.exists():
                    continue  # its owner is about to take the lock
                if folder.name.endswith(f"@{socket.gethostname()}") or age_s > FOREIGN_STAGING_AGE_S:
                    shutil.rmtree(folder, ignore_errors=True)
                    _put_back(old, parent.parent)
                    shutil.rmtree(old, ignore_errors=True)
                    lock_path.unlink(missing_ok=True)
        except OSError:
            continue  # locked by a living owner, or removed meanwhile


def _put_back(old: Path, root: Path) -> None:
    """Move an artifact back to its place in the local store, if that is vacant."""
    try:
        manifest = Manifest.from_json((old / MANIFEST).read_text(encoding="utf-8", errors="replace"), str(old))
    except (FileNotFoundError, DamagedArtifact):
        return  # nothing was moved aside, or what nobody can read any more
    place = root / manifest.asset / manifest.partition / manifest.fingerprint
    with (root / COMMIT_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.parent.mkdir(parents=True, exist_ok=True)
        _rename(old, place)


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _record_files(folder: Path) -> dict[str, FileRecord]:
    """Hash and flush every file under the folder."""
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.relative_to(folder)} is not a plain file; an artifact holds only plain files")
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            raise ValueError(f"{MANIFEST} is written by the store; give the file another name")
        if path.is_file():
            with path.open("rb") as stream:
                records[name] = FileRecord(sha256=_digest(stream), bytes=path.stat().st_size)
                os.fsync(stream.fileno())
    if not records:
        raise ValueError("no file was written; an artifact holds at least one")
    return records


def _fault(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a local file, or None; a file unchanged since this process hashed it is not read again."""
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


def _damaged(where: str, fault: str) -> DamagedArtifact:
    return DamagedArtifact(f"Damaged artifact: {where} {fault}. Materialise the asset again with force to rebuild it.")


def _digest(stream: IO[bytes]) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_full_disk(error: Exception) -> bool:
    """True for the many ways in which libraries report a full disk; not all keep the errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return bool(_FULL_DISK.search(str(error)))


def _storage_full(folder: Path, place: str) -> StorageFull:
    files = [path for path in folder.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files)
    newest = max(files, key=lambda path: path.stat().st_mtime_ns).relative_to(folder) if files else MANIFEST
    return StorageFull(
        f"Disk full while writing {newest} of artifact {place}: {written:,} bytes were staged in {folder.parent}, "
        f"{shutil.disk_usage(folder.parent).free:,} bytes are free. Nothing was kept and no other artifact was "
        "touched; free some space, or set RAREC_HOME or RAREC_ARTIFACTS to a larger disk, and run again."
    )


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; False if the source is absent or the target is taken."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


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
