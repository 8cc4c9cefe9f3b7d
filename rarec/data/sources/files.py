"""Reading published files, with errors that name them."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarec.errors import InputError

ABOUT = re.compile(r"(readme|licen[cs]e)\b.*|.*\.md$", re.IGNORECASE)  # files on the data, not of them
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def check_file(path: Path) -> None:
    """Raise InputError unless `path` is a file that is not empty."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; put it there.")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; get a complete copy of it.")


def find_files(folder: Path, name: str) -> list[Path]:
    """The files in `folder` that `name` means, in order of their names.

    It is a file, compressed or not; a pattern with `*`, `?` or `[`; or a folder of parts, as Spark writes them. Hidden
    files, those that begin with `_`, README and LICENSE files and Markdown are no parts.
    """
    plain = folder / name
    if plain.is_file():
        return [plain]
    if plain.is_dir():
        parts = (path for path in plain.rglob("*") if path.is_file())
        return sorted(
            path
            for path in parts
            if not (ABOUT.match(path.name) or any(one[0] in "._" for one in path.relative_to(plain).parts))
        )
    packed = [folder / (name + suffix) for suffix in COMPRESSED if (folder / (name + suffix)).is_file()]
    if packed:
        return packed[:1]
    if any(mark in name for mark in "*?["):
        return sorted(path for path in folder.glob(name) if path.is_file() and path.name[0] not in "._")
    return []


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that nobody writes to a second name: a hard link, or a copy where there are none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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
