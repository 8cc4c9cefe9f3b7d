"""Why MLflow cannot be used, and what to do about it."""

import re
import shlex
from pathlib import Path

from rarec.errors import InputError, one_line
from resources import disk

SQLITE = "sqlite:///"


def unusable(uri: str, error: Exception, setting: str = "MLFLOW_TRACKING_URI") -> InputError:
    """The error for a store that refuses to work.

    Args:
        setting: what says where the store is.
    """
    text = one_line(error)
    if uri.startswith(SQLITE):
        file = database(uri)
        if words := disk.in_words(error, {setting: file.parent}):
            return InputError(f"MLflow at {uri} cannot be used. {words}")
        if re.search("out-of-date database schema", text):
            return InputError(
                f"The MLflow store {file} was made by an older MLflow. Copy the file, then upgrade it: "
                f".venv/bin/mlflow db upgrade {shlex.quote(uri)}"
            )
        if re.search("Can't locate revision", text):
            return InputError(
                f"The MLflow store {file} was made by a newer MLflow. Use the RaRec that wrote it, or move the file "
                "aside to start a new store."
            )
        if re.search("not a database|malformed", text):
            return InputError(
                f"The MLflow store {file} is damaged ({text}). Restore it from a backup, or move it aside to start a "
                "new store."
            )
    return InputError(
        f"MLflow at {uri} cannot be used: {type(error).__name__}: {text}. Start the tracking server, correct "
        "MLFLOW_TRACKING_URI, or unset it to record runs in a local file."
    )


def deleted_experiment(uri: str, name: str, number: str) -> InputError:
    """The error for an experiment that somebody deleted in MLflow, which keeps it and its name."""
    place = shlex.quote(uri)
    return InputError(
        f"The MLflow experiment {name!r}, which holds all runs, was deleted. Restore it: MLFLOW_TRACKING_URI={place} "
        f".venv/bin/mlflow experiments restore --experiment-id {number}. Or delete it for good, for a new one: "
        f".venv/bin/mlflow gc --backend-store-uri {place} --experiment-ids {number}"
    )


def database(uri: str) -> Path:
    """The file of a store in SQLite."""
    return Path(uri.removeprefix(SQLITE))
