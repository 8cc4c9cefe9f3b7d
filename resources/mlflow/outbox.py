"""Requests to MLflow: sent at once, later if the server is unavailable, or counted as lost.

Nothing here ever fails a training. Everything is sent in the order it came, since a nested run must exist before its
metrics.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import dagster as dg

from rarec.errors import one_line
from rarec.training.progress import progress_log
from resources.retry import call_patiently, is_program_fault

RETRY_INTERVAL_S = 30.0  # between attempts during a run; each may take as long as MLflow's request timeout
DRAIN_INTERVAL_S = 2.0  # between attempts at the end, when nothing else is left to do


class ServerAway(Exception):
    """The server did not accept a parcel. It keeps waiting, with all later ones."""


@dataclass
class Parcel:
    """One request, or a few that belong together; delivering it twice must do no harm.

    Attributes:
        what: names it in the report of what was lost.
        count: how many of these it holds.
    """

    what: str
    deliver: Callable[[], object]
    count: int = 1


class Outbox:
    """The requests to one MLflow server, in order."""

    def __init__(self, log: dg.DagsterLogManager, wait_s: float) -> None:
        """``wait_s``: seconds that all calls of `drain` together wait for a server that is away."""
        self._log = log
        self._patience_s = wait_s
        self._waiting: list[Parcel] = []
        self._lost: Counter[str] = Counter()
        self._retry_at: float | None = None  # None: the server took the last parcel

    def send(self, parcel: Parcel) -> None:
        """Deliver it now, after the parcels that wait; later if the server is away."""
        self._waiting.append(parcel)
        self.deliver()

    def deliver(self) -> None:
        """Deliver the parcels that wait, unless the server was away a moment ago."""
        if self._retry_at is None or time.monotonic() >= self._retry_at:
            with suppress(ServerAway):
                self._attempt()

    def drain(self) -> None:
        """Deliver the parcels that wait, and keep trying until the waiting time is used up."""
        away_since: list[float] = []

        def tell(_: Exception) -> None:
            away_since.append(time.monotonic())
            progress_log.info("%s", f"  MLflow is away; waiting for it at most {self._patience_s:.0f} s")

        with suppress(ServerAway):
            call_patiently(
                self._attempt,
                wait_s=self._patience_s,
                interval_s=DRAIN_INTERVAL_S,
                is_final=lambda error: not isinstance(error, ServerAway),
                on_first_failure=tell,
            )
        if away_since:
            self._patience_s -= time.monotonic() - away_since[0]

    def withdraw(self, parcel: Parcel) -> None:
        """Count it as lost if it still waits."""
        if parcel in self._waiting:
            self._waiting.remove(parcel)
            self._lost[parcel.what] += parcel.count

    def give_up(self) -> None:
        """Try once more, then count as lost whatever still waits."""
        with suppress(ServerAway):
            self._attempt()
        for parcel in self._waiting.copy():
            self.withdraw(parcel)

    @property
    def lost(self) -> str:
        """What never arrived, in words; empty if everything did."""
        return ", ".join(what if n == 1 else f"{n} {what}" for what, n in self._lost.items())

    def _attempt(self) -> None:
        """Deliver the parcels that wait; raises ServerAway at the first that the server does not take."""
        while self._waiting:
            parcel = self._waiting[0]
            try:
                parcel.deliver()
            except Exception as error:
                if refused(error):  # it would be refused again and block everything behind it
                    self._log.warning(f"MLflow refused {parcel.what}: {type(error).__name__}: {one_line(error)}")
                    self.withdraw(parcel)
                    continue
                if self._retry_at is None:
                    self._log.warning(
                        f"MLflow is away: {type(error).__name__}: {one_line(error)}. The work goes on, and what it "
                        "records is sent later."
                    )
                self._retry_at = time.monotonic() + RETRY_INTERVAL_S
                raise ServerAway from error
            self._waiting.pop(0)
        if self._retry_at is not None:
            self._log.info("MLflow is back; everything that waited has been recorded.")
            self._retry_at = None


def refused(error: Exception) -> bool:
    """Whether MLflow refused the request or the request is wrong; False if a server or database is unavailable."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() != 429
    return is_program_fault(error)
