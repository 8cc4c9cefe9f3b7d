"""Where a stage is written, for the link on its page."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import dagster as dg


def code_of(function: Callable[..., Any]) -> dict[str, dg.CodeReferencesMetadataValue]:
    """Metadata with file and line of the function that builds an asset; none if it was typed into an interpreter."""
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except OSError:
        return {}
    with warnings.catch_warnings():  # Dagster says with each that it may change them
        warnings.simplefilter("ignore", dg.BetaWarning)
        own = dg.LocalFileCodeReference(file_path=str(file), line_number=line)
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[own])}
