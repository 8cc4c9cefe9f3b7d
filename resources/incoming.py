"""Ingestion of new interaction files: list a folder or bucket, copy the files that have settled, judge and record them.

Nothing is ever written to the source. Everything known about a file is in the data set's ledger
(`rarec.data.incoming.ledger`).
"""

import errno
import fcntl
import hashlib
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd

from rarec.data.incoming.ledger import Judged, Kind, Ledger, Seen
from rarec.data.incoming.parse import parse_incoming
from rarec.data.incoming.rows import FILE_ROWS, Parsed
from rarec.data.readers.connection import in_memory
from rarec.data.readers.text import kind_of
from rarec.data.sources.files import COMPRESSED
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError, one_line

# Endings of files that hold rows, perhaps with one of a compression behind them.
ENDINGS = (".csv", ".tsv", ".txt", ".dat", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".inter")
TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload")
UNFINISHED = f"its name begins with . or _ or ends in {', '.join(TEMPORARY)}, as those of unfinished files do"
# Keys under which stores report the last write or, if they do not, something that changes with it.
STAMPS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created", "ETag", "etag")
BATCH_FILES = 256
BATCH_BYTES = 64 << 20
CHUNK = 1 << 22
OF_THIS_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Unreadable(Exception):
    """The store answers but does not hand out this one file."""


class IncomingFiles:
    """The files that arrive for one data set, in a local folder or under any fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        if "://" in url:
            self._fs, self._path = fsspec.core.url_to_fs(url)
        else:  # in a path, unlike in a URL, `::` has no meaning
            self._fs, self._path = fsspec.filesystem("file"), url

    def listing(self) -> list[Seen]:
        """The files that are ready to be looked at, in sub-folders too; none if there is no folder.

        Raises:
            Exception: whatever the store raises when it cannot be reached.
        """
        return sorted(_seen(name, entry) for name, entry in self._entries() if not _why_not(name, entry))

    def left_out(self) -> dict[str, str]:
        """The other files, and why each is left out.

        Raises:
            Exception: whatever the store raises when it cannot be reached.
        """
        return dict(sorted((_shown(name), why) for name, entry in self._entries() if (why := _why_not(name, entry))))

    def _entries(self) -> list[tuple[str, Mapping[str, Any]]]:
        """(path below the folder, what the store says) of everything that is no folder."""
        self._fs.invalidate_cache()
        found, folders = [], [self._path]
        while folders:
            folder = folders.pop()
            try:
                entries = self._fs.ls(folder, detail=True)
            except FileNotFoundError:  # there is none, or it was just removed
                continue
            for entry in entries:
                path = str(entry["name"]).rstrip("/")
                name = path[len(self._path.rstrip("/")) + 1 :]
                if entry["type"] == "directory" and not entry.get("islink") and name.rsplit("/", 1)[-1][0] not in "._":
                    folders.append(path)
                elif path != folder:
                    found.append((name, entry))
        return found

    def copy(self, seen: Seen, target: Path, sizes: Collection[int]) -> tuple[str, dict[int, str]] | None:
        """Copy to `target`. Returns the SHA-256 of the content, and that of its first n bytes for each n in `sizes`.

        None if the file is no longer as it was seen.

        Raises:
            Unreadable: this file cannot be read.
            Exception: whatever the store or this machine raises when something else is wrong.
        """
        path = f"{self._path}/{seen.name}"
        digest, done = hashlib.sha256(), 0
        beginnings: dict[int, str] = {}
        marks = [size for size in sorted(sizes) if 0 < size < seen.bytes]
        try:
            with target.open("wb") as copy:
                for chunk in self._read(path, marks):
                    copy.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if done in marks:
                        beginnings[done] = digest.hexdigest()
            self._fs.invalidate_cache()
            now = self._fs.info(path)
            unchanged = not _why_not(seen.name, now) and _seen(seen.name, now) == seen and done == seen.bytes
        except FileNotFoundError:
            return None
        return (digest.hexdigest(), beginnings) if unchanged else None

    def _read(self, path: str, marks: Sequence[int]) -> Iterator[bytes]:
        """The content in chunks; a chunk ends at each mark."""
        done, ahead = 0, list(marks)
        try:
            with self._fs.open(path, "rb") as source:
                while chunk := source.read(min(ahead[0] - done, CHUNK) if ahead else CHUNK):
                    done += len(chunk)
                    if ahead and done == ahead[0]:
                        del ahead[0]
                    yield chunk
        except (FileNotFoundError, ConnectionError, TimeoutError):
            raise
        except PermissionError as error:
            raise Unreadable(one_line(error)) from error
        except OSError as error:
            if error.errno in OF_THIS_MACHINE:
                raise
            self._fs.invalidate_cache()
            self._fs.info(path)  # raises if the store is away
            raise Unreadable(one_line(error)) from error


def _why_not(name: str, entry: Mapping[str, Any]) -> str:
    """Why a file is left out; empty if it is not."""
    last = name.rsplit("/", 1)[-1]
    if last[0] in "._" or last.lower().endswith(TEMPORARY):
        return UNFINISHED
    if entry.get("islink"):
        return "it is a link; put the file itself there"
    if entry["type"] != "file":
        return f"it is no file but a {entry['type']}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    plain = last.lower()
    for suffix in COMPRESSED:
        plain = plain.removesuffix(suffix)
    if not plain.endswith(ENDINGS):
        return f"its ending is none of {', '.join(ENDINGS)}, plain or compressed ({', '.join(COMPRESSED)})"
    return ""


def _shown(name: str) -> str:
    """A name that can be written everywhere."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _seen(name: str, entry: Mapping[str, Any]) -> Seen:
    stamp = str(next((entry[key] for key in STAMPS if entry.get(key) is not None), ""))
    if "mtime" in entry and "created" in entry:
        # For a local file, when its inode changed. Unlike the time of the last write, nobody can set it back.
        stamp += f" {entry['created']}"
    return Seen(name, int(entry["size"]), stamp)


@dataclass
class Ingestion:
    """What one ingestion did: the files it recorded, and those it left for the next one.

    Attributes:
        judged: file, rows, bad_rows and verdict of each recorded file.
        refused: files that were refused as a whole -> why.
        changing: files that were no longer as they were seen.
        unreadable: files that cannot be read -> why.
    """

    judged: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    changing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """file, rows, bad_rows and verdict of each recorded file."""
        return pd.DataFrame(self.judged, columns=["file", "rows", "bad_rows", "verdict"])


def ingest(
    source: IncomingFiles,
    ledger: Ledger,
    spec: DatasetSpec,
    settled: Sequence[Seen],
    batch_files: int = BATCH_FILES,
    judge_again: bool = False,
) -> Ingestion:
    """Judge each settled file and record it, batch by batch. Waits if another process is ingesting for this ledger.

    `judge_again` also judges files again that were withdrawn or refused or had bad rows, if they are still there and
    unchanged. A file that is no longer as it was seen, or that cannot be read, is left for the next ingestion. If the
    store goes away, its error is raised; what was judged before is kept.
    """
    report = Ingestion()
    with _alone(ledger.folder) as scratch, in_memory() as shared:
        files = [(seen, False) for seen in ledger.unjudged(settled)]
        if judge_again:
            files += [(seen, True) for seen in ledger.doubtful(source.listing())]
        earlier, withdrawn = ledger.accepted(), ledger.withdrawn()
        batch: list[Judged] = []
        try:
            for seen, again in files:
                try:
                    judged = _judge(source, spec, seen, earlier.get(seen.name, {}), scratch, shared)
                except Unreadable as error:  # the other files go on
                    report.unreadable[seen.name] = str(error)
                    continue
                if judged is None:
                    report.changing.append(seen.name)
                    continue
                back = judge_again and (judged.sha256, judged.kind) in withdrawn
                batch.append(replace(judged, again=again or back))
                if len(batch) >= batch_files or sum(one.seen.bytes for one in batch) >= BATCH_BYTES:
                    _record(ledger, batch, report)
                    batch = []
        except Exception:  # each kind of store has errors of its own
            _record(ledger, batch, report)
            raise
        _record(ledger, batch, report)
    return report


def withdraw(ledger: Ledger, wanted: Sequence[str]) -> list[str]:
    """`Ledger.withdraw` between two ingestions, so that one that began earlier cannot bring the files back."""
    with _alone(ledger.folder):
        return ledger.withdraw(wanted)


def wait_for_settled(source: IncomingFiles, ledger: Ledger, settle_s: float) -> tuple[list[Seen], list[Seen]]:
    """Files to judge that have settled, and those that have not. If none has settled yet, waits and looks once more."""
    settled, settling = ledger.look(source.listing(), time.time(), settle_s)
    if settling and not settled:
        time.sleep(settle_s * 1.01)  # the two clocks may differ a little
        settled, settling = ledger.look(source.listing(), time.time(), settle_s)
    return settled, settling


def _judge(
    source: IncomingFiles,
    spec: DatasetSpec,
    seen: Seen,
    earlier: Mapping[int, str],
    scratch: Path,
    shared: duckdb.DuckDBPyConnection,
) -> Judged | None:
    copy = scratch / "content"  # a name of our own: the name of an incoming file never becomes a path here
    copied = source.copy(seen, copy, earlier)
    if copied is None:
        return None
    sha256, beginnings = copied
    began_as = tuple(found for size, found in beginnings.items() if earlier[size] == found)
    parsed, refused = Parsed(FILE_ROWS.empty_table(), []), ""
    kind: Kind = "csv"  # any text
    try:
        kind = "parquet" if copy.stat().st_size and kind_of(copy) == "parquet" else "csv"
        try:
            parsed = parse_incoming(copy, spec, time.time(), shared=shared)
        except duckdb.Error:  # an earlier file may have broken the shared database
            parsed = parse_incoming(copy, spec, time.time())
    except (OSError, MemoryError):  # this machine is at fault, not the file
        raise
    except InputError as error:
        refused = str(error).removeprefix(f"{copy.name}: ")
    except Exception as error:  # a strange file can make a parser raise anything; the other files go on
        refused = f"it cannot be read ({type(error).__name__}: {one_line(error)})"
    finally:
        copy.unlink(missing_ok=True)
    return Judged(seen, kind, sha256, parsed.rows, parsed.bad, refused, began_as)


def _record(ledger: Ledger, batch: list[Judged], report: Ingestion) -> None:
    if not batch:
        return
    new, withdrawn = ledger.record(batch), ledger.withdrawn()
    for one in batch:
        verdict = f"refused: {one.refused}" if one.refused else "accepted"
        if one.refused:
            report.refused[one.seen.name] = one.refused
        if one.again:
            verdict = f"judged again, {verdict}"
        elif since := withdrawn.get((one.sha256, one.kind)):
            verdict = f"withdrawn {since}, not accepted again"
        elif not any(one is other for other in new):
            verdict = "already known, under another name or from an earlier ingestion"
        report.judged.append(
            {"file": one.seen.name, "rows": len(one.rows), "bad_rows": len(one.bad), "verdict": verdict}
        )


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Keep other ingestions of this ledger out; yields an empty folder for copies. A dead process holds no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "reading"
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
