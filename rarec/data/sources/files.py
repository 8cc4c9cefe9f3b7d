"""Reading published files, with errors that name them."""

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
    """Raise InputError unless `path` is a file that is not empty."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; put it there.")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; get a complete copy of it.")


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def count_lines(path: Path) -> int:
    """Number of lines, including a last line without a line end."""
    lines, last = 0, b"\n"
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")


def gzip_lines(path: Path) -> Iterator[bytes]:
    """Lines of a gzip file, as bytes.

    Raises:
        InputError: The file is damaged or incomplete.
    """
    try:
        with gzip.open(path, "rb") as stream:
            yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or incomplete ({error}); get a complete copy of it.") from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` if the block ends without an exception. `target` is never incomplete.

    Name `target` after its content: if another process was faster, its folder stays.
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
