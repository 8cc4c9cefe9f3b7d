"""The one exception for input that a user can put right."""


class InputError(ValueError):
    """Bad input: the message names the file, row or setting at fault and says what to do about it."""
