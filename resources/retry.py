"""How RaRec waits for an unavailable service: it retries until the service answers or the time is up."""

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

T = TypeVar("T")

PROGRAM_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ImportError)


def call_patiently(
    operation: Callable[[], T],
    *,
    wait_s: float,
    interval_s: float,
    is_final: Callable[[Exception], bool],
    on_first_failure: Callable[[Exception], None],
) -> T:
    """Result of the operation, called again every ``interval_s`` seconds while it fails.

    Gives up ``wait_s`` seconds after the first failure, or at once on a final error, and raises the last error. The
    time before the first failure does not count: an upload may be cut after an hour and is still tried again.

    Args:
        operation: must do no harm when it is done twice.
        is_final: whether waiting cannot help.
        on_first_failure: called with the error before the first pause.
    """
    failed_at: list[float] = []

    def left_s() -> float:
        return max(0.0, wait_s - (failed_at[-1] - failed_at[0]))

    def note_time(state: RetryCallState) -> None:
        failed_at.append(state.outcome_timestamp or 0.0)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1 and isinstance(error, Exception):
            on_first_failure(error)

    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not is_final(error)),
        after=note_time,
        wait=lambda _: min(interval_s, left_s()),
        stop=lambda _: left_s() == 0,
        before_sleep=tell,
        reraise=True,
    )
    return retrying(operation)


def is_program_fault(error: Exception) -> bool:
    """Whether the request itself is wrong. An OSError never is: some are ValueErrors as well."""
    return isinstance(error, PROGRAM_FAULTS) and not isinstance(error, OSError)
