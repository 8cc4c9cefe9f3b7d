"""The one exception for input that a user can put right."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message names the file, row or setting at fault and says what to do about it."""


def closest(name: str, known: Iterable[str]) -> str:
    """` (did you mean '...'?)` where one of the known names resembles this one; else nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def one_line(error: Exception) -> str:
    """What another library's error says, on one line and no longer than a message can bear."""
    return " ".join(str(error).split())[:300]
