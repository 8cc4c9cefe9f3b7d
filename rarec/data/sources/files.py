"""Facts about files as received, and opening them with errors that name them."""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarec.errors import InputError

CHUNK = 1 << 22


def check_file(path: Path) -> None:
    """Raise InputError unless `path` is a file with something in it."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; put it there.")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; get a complete copy of it.")


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def count_lines(path: Path) -> int:
    """Number of lines, a last one without a line end included."""
    lines, last = 0, b"\n"
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")


def gzip_lines(path: Path) -> Iterator[bytes]:
    """Lines of a gzip file as bytes; InputError if it is damaged or cut short."""
    try:
        with gzip.open(path, "rb") as stream:
            yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); get a complete copy of it.") from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends without an exception; `target` is never half-made.

    `target` must be named after its content: if another process was first, its folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        yield folder
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():
                raise
