"""The artifact store: finds, reads and writes artifacts. Each is stored whole or not at all.

local     root/<asset>/<partition>/<fingerprint>/{manifest.json, files...}, staging in root/.staging
remote    root/<asset>/<partition>/<fingerprint>/{manifest.json, <data version>/files...}
"""

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
from pydantic import Field

from rarec.errors import InputError
from resources.artifacts import identity, local
from resources.artifacts.identity import canonical_json
from resources.artifacts.manifest import MANIFEST, DamagedArtifact, Manifest, damaged
from resources.artifacts.remote import RemoteFolder, stored_content, written_at
from resources.disk import is_full_disk

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Artifact:
    """A committed artifact, read through its manifest. Remote files are fetched into the cache on demand."""

    def __init__(self, manifest: Manifest, folder: Path, remote: RemoteFolder | None = None) -> None:
        self._manifest = manifest
        self._folder = folder
        self._remote = remote

    @property
    def fingerprint(self) -> str:
        """Identity: see `fingerprint()`."""
        return self._manifest.fingerprint

    @property
    def data_version(self) -> str:
        """Version of the content."""
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
        """Local folder with every file, each one verified (and fetched first if the store is remote)."""
        for name in self._manifest.files:
            self.file(name)
        return self._folder

    def file(self, name: str) -> Path:
        """Verified local path of one file; DamagedArtifact names a file that is missing or altered."""
        record = self._manifest.files.get(name)
        if record is None:
            known = ", ".join(sorted(self._manifest.files)) or "none"
            raise InputError(f"Artifact {self._folder} has no file '{name}'; its files are: {known}.")
        path = self._folder / name
        if self._remote is not None and local.find_fault(path, record):
            self._remote.download(self._stored(name), path)
        if fault := local.find_fault(path, record):
            raise damaged(str(path) if self._remote is None else self._remote.url(self._stored(name)), fault)
        return path

    def check_sizes(self) -> None:
        """Check cheaply that every file is in the store with its recorded size; raises DamagedArtifact."""
        for name, record in self._manifest.files.items():
            if self._remote is None:
                path = self._folder / name
                where, size = str(path), path.stat().st_size if path.is_file() else None
            else:
                where, size = self._remote.url(self._stored(name)), self._remote.size(self._stored(name))
            if size is None:
                raise damaged(where, "is missing")
            if size != record.bytes:
                raise damaged(where, f"has {size:,} bytes instead of {record.bytes:,}")

    def _stored(self, name: str) -> str:
        """Path of a file in the remote folder."""
        return f"{self.data_version}/{name}"


class Draft:
    """An artifact being written: put files under `path` and figures into `metadata`; `artifact` is set afterwards."""

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


@dataclass(frozen=True)
class Survey:
    """Everything a store holds.

    Attributes:
        manifests: every manifest that can be read.
        damaged: partition -> paths of the manifests that cannot be read, so that nobody knows what those artifacts
            were made from.
        leftovers: content in a remote store that no manifest names. A rebuild gave other content, or an upload or a
            removal was cut short. Folder below the root -> its size, and when its newest file was written (None if
            the file system does not report it).
    """

    manifests: list[Manifest]
    damaged: dict[str, list[str]]
    leftovers: dict[str, tuple[int, float | None]]


class ArtifactStore(dg.ConfigurableResource):
    """Finds, reads and writes artifacts in a local folder or under any fsspec URL."""

    root: str = Field(description="Local folder or fsspec URL (s3://bucket/rarec, gs://..., memory://...).")
    cache: str = Field(description="Local folder for copies of remote artifacts and for staging before an upload.")
    wait_s: float = Field(
        default=120,
        ge=0,
        description="Seconds each operation waits for a remote store that does not answer, before the asset fails.",
    )

    def find(self, asset: str, partition: str, fingerprint: str) -> Artifact | None:
        """The artifact, or None if there is none.

        Local files are hashed (once per process). Of remote files only the sizes are compared; they are hashed when
        fetched. Raises DamagedArtifact for a damaged artifact; `write` replaces it.
        """
        return self._whole(self._look(asset, partition, fingerprint))

    def open(self, asset: str, partition: str, fingerprint: str) -> Artifact:
        """The artifact, for reading. Files are verified when you ask for them. Raises InputError if there is none."""
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

        An intact artifact that is already there (another process was faster) stays unless `replace`; a damaged one is
        replaced. Raises StorageFull when the disk is full. After an exception the store is as it was.
        """
        if fingerprint != identity.fingerprint(asset, code_version, config, inputs):
            raise ValueError(
                f"fingerprint {fingerprint} of {asset} was not made from this code version, configuration and inputs"
            )
        place = self._place(asset, partition, fingerprint)
        with local.staging_folder(self._staging_root, f"{asset}-{fingerprint[:12]}") as folder:
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
                    files=local.record_files(folder),
                )
                self._commit(folder, manifest, replace)
            except Exception as error:
                # A final failure already says what to do, perhaps about another disk (a checkpoint's).
                final = not getattr(error, "allow_retries", not isinstance(error, InputError))
                if is_full_disk(error) and not final:
                    raise local.storage_full(folder, place) from error
                raise
            draft._artifact = self.open(asset, partition, fingerprint)

    def manifests(self, asset: str = "[!.]*", partition: str = "*") -> Iterator[Manifest]:
        """The manifests of all artifacts, or of one asset, or of one partition; damaged ones are skipped."""
        return (one for _, one in self._read_manifests(asset, partition) if isinstance(one, Manifest))

    def survey(self) -> Survey:
        """Everything the store holds, from one reading of its manifests."""
        content = {} if self._is_local else stored_content(self.root)
        # Manifests are read last, so that whatever was committed meanwhile has one.
        manifests: list[Manifest] = []
        damaged_ones: dict[str, list[str]] = {}
        for path, one in self._read_manifests():
            if isinstance(one, Manifest):
                manifests.append(one)
                content.pop(f"{one.asset}/{one.partition}/{one.fingerprint}/{one.data_version}", None)
            else:
                damaged_ones.setdefault(path.split("/")[-3], []).append(path)
        leftovers: dict[str, tuple[int, float | None]] = {}
        for folder, infos in content.items():
            times = [time for time in map(written_at, infos) if time is not None]
            newest = max(times) if len(times) == len(infos) else None
            leftovers[folder] = sum(int(info["size"]) for info in infos), newest
        return Survey(manifests, damaged_ones, leftovers)

    def with_content(
        self, asset: str, partition: str, data_version: str, identities: Collection[str]
    ) -> Artifact | None:
        """The artifact with this content: one of these fingerprints if possible, else the newest; None if none."""
        found = [one for one in self.manifests(asset, partition) if one.data_version == data_version]
        best = max(found, key=lambda one: (one.fingerprint in identities, one.created), default=None)
        return None if best is None else self.open(asset, partition, best.fingerprint)

    def remove(self, asset: str, partition: str, fingerprint: str) -> None:
        """Delete an artifact. Readers see all of it or none."""
        place = self._place(asset, partition, fingerprint)
        if self._is_local:
            local.remove(Path(place), self._staging_root, fingerprint[:12])
        else:
            artifact = self._load(asset, partition, fingerprint)
            fs, path = fsspec.core.url_to_fs(place)
            fs.rm_file(f"{path}/{MANIFEST}")  # first: without it the rest counts for nothing
            if artifact is not None:
                fs.rm(f"{path}/{artifact.data_version}", recursive=True)
            shutil.rmtree(Path(self.cache) / asset / partition / fingerprint, ignore_errors=True)

    def remove_leftover(self, folder: str) -> None:
        """Delete a folder that `survey` listed under `leftovers`."""
        fs, root = fsspec.core.url_to_fs(self.root)
        fs.rm(f"{root}/{folder}", recursive=True)

    def _commit(self, folder: Path, manifest: Manifest, replace: bool) -> None:
        def keep_present() -> bool:
            return not replace and self._is_intact(manifest)

        names = (manifest.asset, manifest.partition, manifest.fingerprint)
        if self._is_local:
            local.commit(folder, Path(self._place(*names)), manifest, self._local_root, keep_present)
        elif not keep_present():
            remote = self._remote(*names)
            # A failed upload leaves files without a manifest, which no reader sees. They are not deleted while they
            # are young (see `survey`), because a second writer of the same content may count on them.
            for name in manifest.files:
                remote.upload(folder / name, f"{manifest.data_version}/{name}")
            remote.write_text(MANIFEST, manifest.to_json())

    def _is_intact(self, manifest: Manifest) -> bool:
        # `find` would not do: it may wait for the lock under which this is called.
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
        """The artifact; if a killed writer had moved it aside, it is put back first."""
        artifact = self._load(asset, partition, fingerprint)
        if artifact is None and self._is_local:
            local.remove_stale_staging(self._staging_root)
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
                raise damaged(str(path), "is missing")
            where, text = str(path), path.read_text(encoding="utf-8", errors="replace")
        else:
            remote = self._remote(asset, partition, fingerprint)
            stored = remote.read_text(MANIFEST)
            if stored is None:
                return None
            where, text = remote.url(MANIFEST), stored
        manifest = Manifest.from_json(text, where)
        if (manifest.asset, manifest.partition, manifest.fingerprint) != (asset, partition, fingerprint):
            raise damaged(where, "belongs to another artifact")
        if remote is not None:
            folder = Path(self.cache) / asset / partition / fingerprint / manifest.data_version
        return Artifact(manifest, folder, remote)

    def _read_manifests(
        self, asset: str = "[!.]*", partition: str = "*"
    ) -> Iterator[tuple[str, Manifest | DamagedArtifact]]:
        """Path and content of each manifest, or why it cannot be read."""
        pattern = f"{asset}/{partition}/*/{MANIFEST}"
        if self._is_local:  # not by fsspec, for which `[` and `::` in the root have a meaning
            local.remove_stale_staging(self._staging_root)
            found = ((str(path), path.read_bytes()) for path in sorted(self._local_root.glob(pattern)))
        else:
            fs, root = fsspec.core.url_to_fs(self.root)
            found = ((path, bytes(fs.cat_file(path))) for path in sorted(fs.glob(f"{root}/{pattern}")))
        for path, content in found:
            text = content.decode("utf-8", errors="replace")
            try:
                yield path, Manifest.from_json(text, path)
            except DamagedArtifact as error:
                yield path, error

    @property
    def _is_local(self) -> bool:
        return "://" not in self.root or self.root.startswith(("file://", "local://"))

    @property
    def _local_root(self) -> Path:
        return Path(re.sub(r"^(file|local)://", "", self.root)).expanduser().absolute()

    @property
    def _staging_root(self) -> Path:
        return (self._local_root if self._is_local else Path(self.cache).expanduser().absolute()) / local.STAGING

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

    def _remote(self, asset: str, partition: str, fingerprint: str) -> RemoteFolder:
        return RemoteFolder(self._place(asset, partition, fingerprint), self.wait_s)
