"""Text files as DuckDB can read them: UTF-8, one kind of line end, known number of lines.

Most files are read in place. A file in another encoding, with mixed or lone carriage returns, or in a compression that
DuckDB does not know is first copied in a plain form.
"""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rarec.errors import InputError, one_line

CHUNK = 1 << 22
# First bytes of a file, and what it is.
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"SQLite format 3": "an SQLite database; export the table as CSV or parquet",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"Obj\x01": "an Avro file; convert it to parquet",
    b"\x80\x04\x95": "a Python pickle, which is never opened; save it as parquet",
}
PARQUET = b"PAR1"
# Of UTF-32, the mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LATIN = frozenset(map(chr, range(0xC0, 0x180)))  # letters whose bytes, one by one, make no word in any encoding
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowInvalid)


class EmptyFile(InputError):
    """The file holds nothing at all."""


@dataclass
class TextFile:
    """A text file that DuckDB can read.

    Attributes:
        name: Name of the file as the user knows it.
        path: What to read: the file itself, or a plain copy.
        compression: DuckDB's name of the compression of `path`.
        lines: Number of lines, including blank ones.
    """

    name: str
    path: Path
    compression: str
    lines: int

    def open(self) -> IO[bytes]:
        """The plain bytes of `path`."""
        return open_plain(self.path)


def kind_of(path: Path) -> str:
    """What the first bytes say: "parquet", a compression, or "text".

    Raises:
        InputError: The file is something that cannot be read.
    """
    with path.open("rb") as stream:
        first = stream.read(16)
    if first.startswith(PARQUET):
        return "parquet"
    for mark, what in NOT_TEXT.items():
        if first.startswith(mark):
            raise InputError(f"{path.name}: the file is {what}.")
    return next((name for mark, name in COMPRESSIONS.items() if first.startswith(mark)), "text")


def open_plain(path: Path) -> IO[bytes]:
    """The uncompressed bytes of a file; reading them raises InputError if the file is damaged."""
    kind = kind_of(path)
    if kind == "text" and path.suffix == ".gz":
        raise InputError(f"{path.name}: damaged or incomplete (not a gzip file); get a complete copy of it.")
    opened: dict[str, Callable[[], Any]] = {
        "gzip": lambda: gzip.GzipFile(path),
        "bz2": lambda: bz2.BZ2File(path),
        "xz": lambda: lzma.LZMAFile(path),  # noqa: SIM115 - `_Guarded` closes it
        "zstd": lambda: pa.input_stream(str(path), compression="zstd"),
    }
    return _Guarded(opened[kind](), path) if kind in opened else path.open("rb")  # type: ignore[return-value]


class _Guarded:
    """A stream whose reading errors name the file."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._path = stream, path

    def __enter__(self) -> "_Guarded":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except DAMAGED as error:
            raise _damaged(self._path, error) from error
        except OSError as error:
            if error.errno is not None:  # the system's fault, not the file's
                raise
            raise _damaged(self._path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path.name}: damaged or incomplete ({one_line(error)}); get a complete copy of it.")


def chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The rest of the stream, in pieces."""
    while chunk := stream.read(CHUNK):
        yield chunk


@dataclass
class _Seen:
    """What one pass over the bytes found."""

    first: bytes = b""
    newlines: int = 0
    returns: int = 0
    pairs: int = 0
    accents: int = 0
    is_utf8: bool = True
    last: bytes = b"\n"


def _scan(path: Path) -> _Seen:
    seen, decoder = _Seen(), codecs.getincrementaldecoder("utf-8")()
    with open_plain(path) as stream:
        for chunk in chunks(stream):
            seen.first = seen.first or chunk[:4096]
            seen.newlines += chunk.count(b"\n")
            if b"\r" in chunk or seen.last == b"\r":
                seen.returns += chunk.count(b"\r")
                seen.pairs += chunk.count(b"\r\n") + (seen.last == b"\r" and chunk[:1] == b"\n")
            if seen.is_utf8 and not (chunk.isascii() and not decoder.getstate()[0]):
                try:
                    text = decoder.decode(chunk)
                    seen.accents += 0 if text.isascii() else sum((not one.isascii()) + (one in LATIN) for one in text)
                except UnicodeDecodeError:
                    seen.is_utf8 = False
            seen.last = chunk[-1:]
    if seen.is_utf8 and decoder.getstate()[0]:
        seen.is_utf8 = False
    return seen


def prepare(path: Path, scratch: Path, encoding: str = "utf-8") -> TextFile:
    """Make a text file readable for DuckDB.

    A mark at the beginning of the file decides its encoding. Text that is announced in another encoding, but is valid
    UTF-8 throughout with two characters beyond ASCII or a Latin letter, is UTF-8: that is no coincidence.

    Args:
        path: The file, compressed or not.
        scratch: Folder for a plain copy, if one is needed.
        encoding: Any encoding that Python knows.

    Raises:
        EmptyFile: The file is empty.
        InputError: It is damaged, or no text.
    """
    seen = _scan(path)
    if not seen.first:
        raise EmptyFile(f"{path.name}: the file is empty; get a complete copy of it.")
    encoding = _encoding(seen, encoding)
    lone = seen.returns != seen.pairs
    mixed = lone or (seen.pairs and seen.pairs != seen.newlines)
    kind = kind_of(path)
    lines = seen.newlines + (seen.last not in (b"\n", b""))
    if encoding == "utf-8" and not mixed and kind in ("text", "gzip", "zstd"):
        return TextFile(path.name, path, "none" if kind == "text" else kind, lines)
    copy = new_copy(scratch)
    try:
        return TextFile(path.name, copy, "none", _copy_plain(path, copy, encoding))
    except UnicodeError as error:
        raise InputError(f"{path.name}: the file is not written in {encoding}; correct `encoding`.") from error


def new_copy(scratch: Path) -> Path:
    """A new, empty file in the folder."""
    path = scratch / f"copy-{len(list(scratch.iterdir()))}.txt"
    path.touch()  # so that the next one gets another name
    return path


def _encoding(seen: _Seen, declared: str) -> str:
    for mark, encoding in MARKS.items():
        if seen.first.startswith(mark):
            return encoding
    # Text without a mark, every second byte of which is zero.
    odd, even = seen.first[1::2], seen.first[::2]
    if len(odd) > 8 and odd.count(0) > len(odd) // 2 and not even.count(0):
        return "utf-16-le"
    if len(even) > 8 and even.count(0) > len(even) // 2 and not odd.count(0):
        return "utf-16-be"
    name = codecs.lookup(declared).name
    many_bytes = name.startswith(("utf-16", "utf-32"))
    return "utf-8" if seen.is_utf8 and (seen.accents >= 2 or many_bytes or name == "ascii") else name


def _copy_plain(source: Path, target: Path, encoding: str) -> int:
    """Copy as UTF-8 with `\\n` at line ends; returns the number of lines. Bytes that are no text stay as they are."""
    decode: Callable[[bytes, bool], str] | None = None
    if encoding != "utf-8":
        decode = codecs.getincrementaldecoder(encoding)(errors="surrogateescape").decode
    lines, held, last = 0, b"", b"\n"
    old_mac: bool | None = None  # whether lines end with carriage returns alone, as the beginning of the file tells
    with open_plain(source) as stream, target.open("wb") as out:

        def put(data: bytes) -> None:
            nonlocal lines, held, last, old_mac
            if old_mac is None and data:
                old_mac = b"\r" in data and b"\n" not in data
            data, held = held + data, b""
            if data.endswith(b"\r"):  # perhaps the first half of a line end
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n" if old_mac else b" ")
            lines += data.count(b"\n")
            last = data[-1:] or last
            out.write(data)

        for chunk in chunks(stream):
            put(decode(chunk, False).encode(errors="surrogateescape") if decode else chunk)
        if decode:
            put(decode(b"", True).encode(errors="surrogateescape"))
        if held:
            out.write(b"\n")
            lines, last = lines + 1, b"\n"
    return lines + (last != b"\n")


def blank_out(file: TextFile, wanted: set[int], scratch: Path) -> TextFile:
    """A copy of the file in which the `wanted` lines, counted from 1, are empty."""
    copy = new_copy(scratch)
    number, held = 1, b""
    with file.open() as stream, copy.open("wb") as out:
        for chunk in chunks(stream):
            *lines, held = (held + chunk).split(b"\n")
            inside = [n for n in wanted if number <= n < number + len(lines)]
            for n in inside:
                lines[n - number] = b""
            number += len(lines)
            out.writelines(line + b"\n" for line in lines)
        out.write(b"\n" if number in wanted else held)
    return TextFile(file.name, copy, "none", file.lines)


def plain(file: TextFile, scratch: Path) -> TextFile:
    """The file without compression."""
    if file.compression == "none":
        return file
    copy = new_copy(scratch)
    with file.open() as stream, copy.open("wb") as out:
        out.writelines(chunks(stream))
    return TextFile(file.name, copy, "none", file.lines)
