"""What an MLflow run has still to tell: sent at once, later when the server was away, or counted as lost.

Nothing here ever fails a training. Everything goes out in the order it came, since a nested run must exist before its
metrics.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from rarec.errors import one_line

RETRY_INTERVAL_S = 30.0  # between attempts in mid-run; each may take as long as MLflow's request time-out
DRAIN_INTERVAL_S = 2.0  # between attempts at the end, when nothing else is left to do
PROGRAM_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ImportError)

progress_log = logging.getLogger("rarec.progress")  # `make run` shows it in the terminal


@dataclass
class Parcel:
    """One request, or a few that belong together; delivering it twice must do no harm.

    Attributes:
        what: named in the report of what was lost.
        count: how many of these it holds.
    """

    what: str
    deliver: Callable[[], object]
    count: int = 1


class Outbox:
    """Requests to one MLflow server in order."""

    def __init__(self, log: dg.DagsterLogManager, wait_s: float) -> None:
        """``wait_s``: how long all calls of `drain` together wait for a server that is away, seconds."""
        self._log = log
        self._patience_s = wait_s
        self._waiting: list[Parcel] = []
        self._lost: Counter[str] = Counter()
        self._retry_at: float | None = None  # None: the server took the last thing

    def send(self, parcel: Parcel) -> None:
        """Deliver it now, after what waits; later if the server is away."""
        self._waiting.append(parcel)
        self.deliver()

    def deliver(self) -> None:
        """Deliver what waits, unless the server was away a moment ago."""
        if self._retry_at is None or time.monotonic() >= self._retry_at:
            self._attempt()

    def drain(self) -> None:
        """Deliver what waits, trying again while patience lasts."""
        told = False
        while not self._attempt() and self._patience_s > 0:
            if not told:
                progress_log.info("%s", f"  MLflow is away; waiting for it at most {self._patience_s:.0f} s")
                told = True
            started = time.monotonic()
            time.sleep(min(DRAIN_INTERVAL_S, self._patience_s))
            self._patience_s -= time.monotonic() - started

    def withdraw(self, parcel: Parcel) -> None:
        """Count it as lost if it still waits."""
        if parcel in self._waiting:
            self._waiting.remove(parcel)
            self._lost[parcel.what] += parcel.count

    def give_up(self) -> None:
        """Count as lost what still waits and cannot be delivered now, either."""
        self._attempt()
        for parcel in self._waiting.copy():
            self.withdraw(parcel)

    @property
    def lost(self) -> str:
        """What never arrived, in words; empty if everything did."""
        return ", ".join(what if n == 1 else f"{n} {what}" for what, n in self._lost.items())

    def _attempt(self) -> bool:
        """Deliver what waits; False if the server is away."""
        while self._waiting:
            parcel = self._waiting[0]
            try:
                parcel.deliver()
            except Exception as error:
                if refused(error):  # it would be next time, and hold up everything behind it
                    self._log.warning(f"MLflow does not take {parcel.what}: {type(error).__name__}: {one_line(error)}")
                    self.withdraw(parcel)
                    continue
                if self._retry_at is None:
                    self._log.warning(
                        f"MLflow is away: {type(error).__name__}: {one_line(error)}. The work goes on; what is to be "
                        "recorded waits."
                    )
                self._retry_at = time.monotonic() + RETRY_INTERVAL_S
                return False
            self._waiting.pop(0)
        if self._retry_at is not None:
            self._log.info("MLflow is back; what waited has been recorded.")
            self._retry_at = None
        return True


def refused(error: Exception) -> bool:
    """Whether MLflow answered no, or our request is wrong, as opposed to a server or database that is away."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() != 429
    return isinstance(error, PROGRAM_FAULTS) and not isinstance(error, OSError)
