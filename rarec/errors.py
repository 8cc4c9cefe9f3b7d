"""The exception for input that a user can correct."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message names the file, row or setting, what was expected, and what to do."""


def closest(name: str, known: Iterable[str]) -> str:
    """` (did you mean '...'?)` if a known name resembles this one; else an empty text."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def one_line(error: Exception) -> str:
    """The message of another library's error, on one line and truncated to 300 characters."""
    return " ".join(str(error).split())[:300]


def printable(text: str) -> str:
    """The text on one line, with a question mark for what cannot be printed, such as the bytes of odd file names."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
