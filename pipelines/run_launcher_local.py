"""The run launcher of the embedded Dagster instance (`make run`, `make ui`), named in pipelines/dagster.yaml."""

import socket

import psutil
from dagster import DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.events import EngineEventData
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

HOST_TAG = "rarec/host"
SKEW_S = 600.0  # the clock may have been set by this much; a process that started later is another one


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher; run monitoring can also ask it whether the process of a run is alive.

    Otherwise a run that was killed or ended by a reboot would count as running forever. The process is found by its
    id, because the code servers of `dagster dev` end with it and are replaced when definitions are reloaded.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if the run's process is gone. Runs on other machines or without a process id yet count as running."""
        launched_here = GRPC_INFO_TAG in run.tags or run.tags.get(HOST_TAG) == socket.gethostname()
        found = _process_of(self._instance, run) if launched_here else None
        if found is None or _lives(*found):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"its process {found[0]} is gone: it was killed, or the machine rebooted"
        )


def _process_of(instance: DagsterInstance, run: DagsterRun) -> tuple[int, float] | None:
    """Id of the run's first process, and when it was logged."""
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        data = entry.get_dagster_event().event_specific_data
        if isinstance(data, EngineEventData) and "pid" in data.metadata:
            return int(str(data.metadata["pid"].value)), entry.timestamp
    return None


def _lives(pid: int, at: float) -> bool:
    """Whether the process that had this id at that time is alive; a zombie is not."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < at + SKEW_S
    except psutil.NoSuchProcess:
        return False
