"""A store for tests, `shaky://` and a local folder: it can be away, keeps a list of what is opened, and lets a test act
in the middle of a reading."""

from functools import partial
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem


class ShakyStore(LocalFileSystem):
    protocol = "shaky"
    cachable = False
    away = ""  # what it says while it is away
    opens_left = None  # how many files it opens before it goes away
    forbidden = ()  # names that may not be read
    broken = {}  # noqa: RUF012 - name -> the error that its reading ends with
    opened = ()  # names, in order
    amid = None  # called with the path after the first bytes of each file were read; "cut": no more bytes come

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("shaky://"))

    def ls(self, path, detail=False, **options):
        self._reach()
        return super().ls(path, detail=detail, **options)

    def info(self, path, **options):
        self._reach()
        return super().info(path, **options)

    def _open(self, path, mode="rb", block_size=None, **options):
        self._reach()
        kind = type(self)
        if Path(path).name in kind.forbidden:
            raise PermissionError(f"[Errno 13] Permission denied: {path!r}")
        if kind.opens_left is not None:
            kind.opens_left -= 1
            if kind.opens_left < 0:
                kind.away = "the line is cut"
                self._reach()
        kind.opened += (Path(path).name,)
        file = super()._open(path, mode=mode, block_size=block_size, **options)
        if (error := kind.broken.get(Path(path).name)) is not None:
            return _Interrupted(file, path, partial(_fail, error))
        return file if kind.amid is None else _Interrupted(file, path, kind.amid)

    def _reach(self):
        if type(self).away:
            raise ConnectionError(f"could not connect to the endpoint:\n  {type(self).away}")


def _fail(error, _):
    raise error


class _Interrupted:
    """An open file; between its first and its second read something happens."""

    def __init__(self, file, path, amid):
        self._file, self._path, self._amid, self._reads = file, Path(path), amid, 0

    def read(self, size):
        self._reads += 1
        if self._reads == 2 and self._amid(self._path) == "cut":
            return b""
        return self._file.read(size if self._reads > 1 else min(size, 10))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
