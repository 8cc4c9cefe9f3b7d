"""Run launcher and storage of the Dagster instance in docker/dagster.yaml, for code location, webserver and daemon.

This file imports nothing else from RaRec: the image of webserver and daemon holds only Dagster.
"""

import logging
import time
from typing import Any

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import event
from sqlalchemy.engine import Engine

# Dagster tries six times, so it gives up after two minutes.
WAIT_S = 20.0
LOOK_INTERVAL_S = 0.5
FINAL = ("authentication failed", "does not exist", "permission denied")


class CheckedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher; run monitoring can also ask it whether the process of a run is alive.

    Otherwise a run whose code server was restarted would count as running forever, and would block its pool.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if the code server does not know the run. A server that does not answer is asked again later."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:  # the run ended meanwhile
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=10)
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "the code server does not answer")
        if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the code server was restarted and does not know this run")


class PatientPostgresStorage(DagsterPostgresStorage):
    """Dagster's Postgres storage. Every process that loads it waits for an unavailable server."""


@event.listens_for(Engine, "do_connect")
def wait_for_server(dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
    """Connect to Postgres. Tries for WAIT_S if the server is away; raises at once if it refuses the connection."""
    if dialect.name != "postgresql":
        return None
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return dialect.connect(*arguments, **parameters)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() > deadline or any(text in str(error) for text in FINAL):
                raise
            logging.getLogger(__name__).warning("Postgres is away, trying again: %s", error)
            time.sleep(LOOK_INTERVAL_S)
