"""Unpacking published archives (zip, tar) into a cache folder: only wanted files, and nothing outside the folder."""

import gzip
import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, cast

from rarec.data.sources.files import COMPRESSED, check_file, sha256_of, whole_folder
from rarec.errors import InputError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
# Rating files compress five- to tenfold. Far above that, the archive is a zip bomb.
LARGEST_RATIO = 100
SMALL = 1 << 20
# Python unpacks other methods without a limit, however little is read.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# RuntimeError: a zip that is encrypted, or packed in a way unknown to Python. OSError is missing: the disk may be full.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RuntimeError)


@dataclass(frozen=True)
class _Member:
    name: str
    is_file: bool
    is_link: bool
    size: int
    open: Callable[[], IO[bytes]]


def find_archives(folder: Path) -> list[Path]:
    """Archives in the folder, by name."""
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and path.is_file())


def unpack(archive: Path, wanted: set[str], cache: Path) -> Path:
    """Unpack the `wanted` file names, from whatever folder in the archive, into a folder inside `cache`.

    The folder is named after the archive's content and the wanted names. It appears complete or not at all, and a
    second call reuses it.

    Raises:
        InputError: The archive is damaged, holds a link or a path that leads outside, two files with the same wanted
            name, or suspiciously large content.
    """
    check_file(archive)
    # Other wanted names make another folder, so that added names are not missed.
    names = hashlib.sha256("\0".join(sorted(wanted)).encode()).hexdigest()
    target = cache / "unpacked" / f"{archive.name.split('.')[0]}-{sha256_of(archive)[:16]}-{names[:8]}"
    if target.is_dir():
        return target
    with whole_folder(target) as folder:
        try:
            with _members(archive) as members:
                _extract(archive, members, wanted, folder)
        except DAMAGED as error:
            raise InputError(f"{archive}: damaged or incomplete ({error}); get a complete copy of it.") from error
    return target


class _Bounded:
    """The content of a tar, up to a size: tarfile reads headers whole, so headers alone can be a bomb."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream = stream
        self._archive = archive
        self._most = _largest_content(archive)

    def read(self, size: int) -> bytes:
        self._check(self.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> None:
        self._check(position)
        self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, position: int) -> None:
        # tarfile reads whole blocks, even beyond the end.
        if position > self._most + tarfile.RECORDSIZE:
            raise _too_large(self._archive)


def _largest_content(archive: Path) -> int:
    return max(SMALL, LARGEST_RATIO * archive.stat().st_size)


def _too_large(archive: Path) -> InputError:
    return InputError(
        f"{archive}: its files are more than {LARGEST_RATIO} times as large as the archive, so it was not unpacked. If "
        "that is right, unpack it yourself."
    )


def _is_wanted(name: str, wanted: set[str]) -> bool:
    """Whether a file has one of the wanted names, which may be patterns, perhaps compressed."""
    plain = name.removesuffix(next((suffix for suffix in COMPRESSED if name.endswith(suffix)), ""))
    return any(fnmatchcase(one, pattern) for one in (name, plain) for pattern in wanted)


def _extract(archive: Path, members: Iterator[_Member], wanted: set[str], folder: Path) -> None:
    left = _largest_content(archive)
    for member in members:
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or member.is_link:
            raise InputError(f"{archive}: not unpacked, as {member.name!r} is a link or a path that leads outside.")
        if not member.is_file or not _is_wanted(path.name, wanted) or "__MACOSX" in path.parts:
            continue
        target = folder / path.name
        if target.exists():
            raise InputError(f"{archive}: holds two files named {path.name!r}; unpack the right one yourself.")
        left -= member.size
        if left < 0:
            raise _too_large(archive)
        with member.open() as stream, target.open("wb") as copy:
            # Neither zip nor tar yields more than the declared size; both raise if there is less.
            shutil.copyfileobj(stream, copy)
        if target.stat().st_size != member.size:
            raise InputError(f"{archive}: {path.name!r} is incomplete; get a complete copy of the archive.")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield (_zip_member(file, info) for info in file.infolist())
    else:
        compressed = archive.name.lower().endswith("gz")
        with gzip.open(archive) if compressed else archive.open("rb") as stream:
            bounded = cast(IO[bytes], _Bounded(cast(IO[bytes], stream), archive))
            with tarfile.open(fileobj=bounded, mode="r:") as file_:
                yield (_tar_member(file_, info) for info in file_)


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    # The upper half is the Unix mode; 0o12 is a symbolic link.
    is_link = (info.external_attr >> 28) == 0o12
    if info.compress_type not in ZIP_METHODS:
        raise zipfile.BadZipFile(f"{info.filename} is compressed by a method other than deflate")
    return _Member(info.filename, not info.is_dir(), is_link, info.file_size, lambda: file.open(info))


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def open_() -> IO[bytes]:
        stream = file.extractfile(info)
        if stream is None:
            raise tarfile.TarError(f"{info.name} is not a regular file")
        return stream

    is_link = info.issym() or info.islnk() or info.isdev()
    return _Member(info.name, info.isreg(), is_link, info.size, open_)
