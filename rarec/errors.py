"""The one exception for input that a user can put right."""


class InputError(ValueError):
    """Bad input: the message names the file, row or setting at fault and says what to do about it."""


def one_line(error: Exception) -> str:
    """What another library's error says, on one line and no longer than a message can bear."""
    return " ".join(str(error).split())[:300]
