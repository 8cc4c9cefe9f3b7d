"""Rows that cannot be read: set aside with file, line and reason, and too many of them stop the reading."""

import pandas as pd

from rarec.errors import InputError

COLUMNS = ["file", "line", "reason", "text"]
TEXT_LIMIT = 500  # characters of a bad row kept, enough to recognise it
SHOWN = 3
ADVICE = "Correct the file, or raise `quarantine_limit` of the data set."


class Quarantine:
    """Collects the bad rows of one reading."""

    def __init__(self, limit: float, advice: str = ADVICE) -> None:
        """`limit`: share of a file's rows above which `check` fails; `advice`: what it then says should be done."""
        self.limit = limit
        self.advice = advice
        self._rows: list[tuple[str, int, str, str]] = []
        self._counts: dict[str, int] = {}

    def add(self, file: str, line: int, reason: str, text: str) -> None:
        """Set aside one row; `line` counts from 1. Blank lines are no rows and are not kept."""
        if not text.strip(" \r\n"):
            return
        self._rows.append((file, line, reason, text[:TEXT_LIMIT]))
        self._counts[file] = self._counts.get(file, 0) + 1

    def count(self, file: str) -> int:
        """Bad rows of `file` so far."""
        return self._counts.get(file, 0)

    def rows(self, file: str) -> list[tuple[int, str, str]]:
        """(line, reason, text) of the bad rows of `file`, sorted by line."""
        return sorted((row[1:] for row in self._rows if row[0] == file), key=lambda row: row[0])

    def check(self, file: str, rows: int) -> None:
        """Raise InputError if more than the allowed share of the `rows` rows of `file` is bad."""
        bad = self.count(file)
        if bad <= self.limit * rows:
            return
        first = sorted(row[1:] for row in self._rows if row[0] == file)[:SHOWN]
        shown = "; ".join(f"line {line}: {reason} [{text[:80]}]" for line, reason, text in first)
        shown += "; …" if bad > SHOWN else "."
        raise InputError(
            f"{file}: {bad} of {rows} rows cannot be read (allowed: {self.limit:.2%}). {shown} {self.advice}"
        )

    def frame(self) -> pd.DataFrame:
        """The bad rows as a table [file, line, reason, text], sorted by file and line."""
        table = pd.DataFrame(self._rows, columns=COLUMNS).astype(
            {"file": "str", "line": "int64", "reason": "str", "text": "str"}
        )
        return table.sort_values(["file", "line"], ignore_index=True, kind="stable")
