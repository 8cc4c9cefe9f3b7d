"""How a step refuses to work: with one message, and without retries."""

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from rarec.errors import InputError
from resources import disk

F = TypeVar("F", bound=Callable[..., Any])

CONTEXTS = (dg.OpExecutionContext, dg.AssetExecutionContext)


def refuse_bad_input(step: F) -> F:
    """Turn `InputError` into a Dagster failure that is shown as one message and never retried. A run without a data set
    is also bad input, and so are a disk that is full or write-protected and a run that was given up.
    """

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        contexts = [one for one in (*args, *kwargs.values()) if isinstance(one, CONTEXTS)]
        try:
            if not all(context.has_partition_key for context in contexts):
                raise InputError("choose a data set (the partition) for this run")
            for context in contexts:
                _require_going_on(context)
            return step(*args, **kwargs)
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        except dg.Failure:
            raise
        except Exception as error:
            if words := disk.in_words(error, _places(contexts)):
                raise dg.Failure(words, allow_retries=False) from error
            raise

    return wrapper  # type: ignore[return-value]


def _require_going_on(context: Any) -> None:
    """Refuse a step of a run that Dagster has given up or cancelled, such as one that took too long to start.

    The run's own status does not tell: when its process starts after all, Dagster counts it as started again.
    """
    ended = {dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED}
    if context.instance.get_records_for_run(context.run_id, of_type=ended, limit=1).records:
        raise InputError("Dagster had given up this run before the step started, so nothing was built; launch it again")


def _places(contexts: Iterable[Any]) -> dict[str, Path]:
    """Where a step writes besides the artifact store, by the setting that names each folder."""
    places = [("TMPDIR", Path(tempfile.gettempdir()))]
    for context in contexts:
        if hasattr(context.resources, "workspace"):
            places.insert(0, ("RAREC_HOME", Path(context.resources.workspace.cache).parent))
    return dict(places)
