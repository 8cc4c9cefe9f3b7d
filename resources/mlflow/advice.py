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
        if "out-of-date database schema" in text:
            return InputError(
                f"The MLflow store {file} was made by another version of MLflow. If that was a newer one, use the "
                "RaRec that wrote it. If it was an older one, copy the file and upgrade it: "
                f".venv/bin/mlflow db upgrade {shlex.quote(uri)}"
            )
        if damage := re.search("file is not a database|disk image is malformed|table \\w+ already exists", text):
            return InputError(
                f"The MLflow store {file} is damaged ({damage[0]}). Restore it from a backup, or move it aside to "
                "start a new store."
            )
    return InputError(
        f"MLflow at {uri} cannot be used: {type(error).__name__}: {text}. Start the tracking server, correct "
        "MLFLOW_TRACKING_URI, or unset it to record runs in a local file."
    )


def deleted_experiment(uri: str, name: str, number: str) -> InputError:
    """The error for an experiment that somebody deleted in MLflow, which keeps it and its name."""
    place = shlex.quote(uri)
    store = "'<its database>'" if uri.startswith(("http://", "https://")) else place
    return InputError(
        f"The MLflow experiment {name!r}, which holds all runs, was deleted. Restore it: MLFLOW_TRACKING_URI={place} "
        f".venv/bin/mlflow experiments restore --experiment-id {number} ; or delete it for good, for a new one: "
        f".venv/bin/mlflow gc --backend-store-uri {store} --experiment-ids {number}"
    )


def database(uri: str) -> Path:
    """The file of a store in SQLite."""
    return Path(uri.removeprefix(SQLITE))
