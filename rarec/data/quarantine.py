"""Unreadable rows are quarantined with file, line and reason. Too many of them are an error."""

from collections.abc import Sequence
from typing import NoReturn

import pandas as pd

from rarec.errors import InputError

COLUMNS = ["file", "line", "reason", "text"]
TEXT_LIMIT = 500  # characters kept of a bad row
SHOWN = 3
ADVICE = "Correct the file, or raise the data set's `quarantine_limit`."


class Quarantine:
    """Collects bad rows while files are read."""

    def __init__(self, limit: float, advice: str = ADVICE) -> None:
        """Start empty.

        Args:
            limit: Share of a file's rows above which `check` fails.
            advice: What the error then tells the user to do.
        """
        self.limit = limit
        self.advice = advice
        self._rows: list[tuple[str, int, str, str]] = []
        self._counts: dict[str, int] = {}
        self._unseen: set[str] = set()

    def add(self, file: str, line: int, reason: str, text: str) -> None:
        """Quarantine one row. `line` counts from 1. Blank lines are ignored."""
        if not text.strip(" \r\n"):
            return
        self._rows.append((file, line, reason, text[:TEXT_LIMIT]))
        self._counts[file] = self._counts.get(file, 0) + 1

    @property
    def size(self) -> int:
        """Number of bad rows that are here with their text."""
        return len(self._rows)

    def count(self, file: str) -> int:
        """Bad rows of `file` so far."""
        return self._counts.get(file, 0)

    def rows(self, file: str) -> list[tuple[int, str, str]]:
        """(line, reason, text) of the bad rows of `file`, sorted by line."""
        return sorted((row[1:] for row in self._rows if row[0] == file), key=lambda row: row[0])

    def add_unseen(self, file: str, rows: int) -> None:
        """Count further bad rows of `file` without their text. Then `check` fails."""
        if rows:
            self._counts[file] = self._counts.get(file, 0) + rows
            self._unseen.add(file)

    def check(self, files: Sequence[str], rows: int, hint: str = "") -> None:
        """Raise InputError if too large a share of the `rows` rows of `files` is bad; `hint` replaces the advice."""
        bad = sum(map(self.count, files))
        if bad > self.limit * rows or any(file in self._unseen for file in files):
            self.refuse(files, rows, hint)

    def refuse(self, files: Sequence[str], rows: int, hint: str = "") -> NoReturn:
        """Raise InputError with the first bad rows of `files`."""
        bad = sum(map(self.count, files))
        own = {file: number for number, file in enumerate(files)}
        first = sorted((row for row in self._rows if row[0] in own), key=lambda row: (own[row[0]], *row[1:]))[:SHOWN]
        several = len(files) > 1
        shown = "; ".join(
            f"{f'{file}, ' if several else ''}line {line}: {reason} [{text[:80]}]" for file, line, reason, text in first
        )
        shown += "; … " if bad > SHOWN else ". "
        shown = shown if first else ""
        which = f"{files[0]} and {len(files) - 1} more" if several else files[0]
        allowed = f" (allowed: {self.limit:.2%})" if self.limit < 1 else ""
        raise InputError(f"{which}: {bad} of {rows} rows cannot be read{allowed}. {shown}{hint or self.advice}")

    def frame(self) -> pd.DataFrame:
        """The bad rows as a table [file, line, reason, text], sorted by file and line."""
        table = pd.DataFrame(self._rows, columns=COLUMNS).astype(
            {"file": "str", "line": "int64", "reason": "str", "text": "str"}
        )
        return table.sort_values(["file", "line"], ignore_index=True, kind="stable")
