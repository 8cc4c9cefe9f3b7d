"""The remote side of the store: the folder of one artifact under any fsspec URL.

A remote artifact is committed by uploading its manifest last. Files lie under their data version, so that two writers,
or a rebuild during a read, never mix files of different content. A store that does not answer is tried again for a
while before the asset fails.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import fsspec

from rarec.errors import one_line
from rarec.training.progress import progress_log
from resources.artifacts.local import StorageFull
from resources.artifacts.manifest import damaged
from resources.disk import is_full_disk
from resources.retry import call_patiently, is_program_fault

T = TypeVar("T")

LOOK_AGAIN_S = 2.0  # between attempts while the store is away
# Answers of a store that no waiting changes.
FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
)


_DIGEST = re.compile(r"[0-9a-f]{32}")


class RemoteFolder:
    """The folder of one artifact in a remote file system."""

    def __init__(self, url: str, wait_s: float) -> None:
        """``wait_s``: how long each operation waits for a store that does not answer."""
        self._url = url
        self._wait_s = wait_s
        self._fs, self._path = fsspec.core.url_to_fs(url)

    def url(self, name: str) -> str:
        """URL of one file."""
        return f"{self._url}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of one file; None if there is none."""
        try:
            return int(self._patiently(lambda: self._fs.info(f"{self._path}/{name}"))["size"])
        except FileNotFoundError:
            return None

    def read_text(self, name: str) -> str | None:
        """Content of one file; None if there is none."""
        self._fs.invalidate_cache()
        try:
            text = self._patiently(lambda: self._fs.cat_file(f"{self._path}/{name}"))
            return bytes(text).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write_text(self, name: str, text: str) -> None:
        """Write one file in one request."""
        self._patiently(lambda: self._fs.pipe_file(f"{self._path}/{name}", text.encode()))

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file to the store."""
        target = f"{self._path}/{name}"

        def put() -> None:
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(source), target)

        self._patiently(put)

    def download(self, name: str, target: Path) -> None:
        """Fetch a file beside the target and rename it, so that a broken download is never taken for the file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            self._patiently(lambda: self._fs.get_file(f"{self._path}/{name}", str(partial)))
            partial.replace(target)
        except FileNotFoundError as error:
            raise damaged(self.url(name), "is missing") from error
        except OSError as error:
            if is_full_disk(error):
                raise StorageFull(
                    f"Disk full while fetching {self.url(name)} ({self.size(name) or 0:,} bytes) to {target}. "
                    "Free some space (the cache folder may be deleted at any time) and run again."
                ) from error
            raise
        finally:
            partial.unlink(missing_ok=True)

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Result of the operation, tried again while the store is away; doing it twice must do no harm.

        Raises:
            dg.Failure: the store did not answer for `wait_s` seconds.
        """

        def tell(error: Exception) -> None:
            text = f"  {self._url} is away ({one_line(error)}); waiting for it at most {self._wait_s:.0f} s"
            progress_log.info("%s", text)

        try:
            return call_patiently(
                operation, wait_s=self._wait_s, interval_s=LOOK_AGAIN_S, is_final=_is_final, on_first_failure=tell
            )
        except Exception as error:  # each kind of store has errors of its own
            if _is_final(error):
                raise
            raise dg.Failure(
                f"The artifact store did not answer for {self._wait_s:.0f} s: {self._url}: {type(error).__name__}: "
                f"{one_line(error)}. Nothing half-written is visible there. Run again when it is back: trainings "
                "resume from their checkpoints."
            ) from error


def _is_final(error: Exception) -> bool:
    return isinstance(error, FINAL) or is_full_disk(error) or is_program_fault(error)


def stored_content(root: str) -> dict[str, list[Mapping[str, Any]]]:
    """What the file system reports of each file, by the folder of its data version below the root."""
    fs, top = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path, info in fs.find(top, detail=True).items():
        parts = path.removeprefix(top).strip("/").split("/")  # asset, partition, fingerprint, data version, file
        if len(parts) > 4 and _DIGEST.fullmatch(parts[2]) and _DIGEST.fullmatch(parts[3]):
            found.setdefault("/".join(parts[:4]), []).append(info)
    return found


def written_at(info: Mapping[str, Any]) -> float | None:
    """When a file was written (Unix time), if its file system reports it (the key varies)."""
    told = next((info[name] for name in ("LastModified", "last_modified", "mtime", "created") if name in info), None)
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, int | float) else None
