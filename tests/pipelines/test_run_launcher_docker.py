"""Whether a run lives is asked of its code server; a Postgres that is away is waited for."""

import importlib
import sys
from types import SimpleNamespace

import pytest
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import WorkerStatus
from dagster._grpc.types import CanCancelExecutionResult
from dagster._serdes import serialize_value
from sqlalchemy import event
from sqlalchemy.engine import Engine

RUN = SimpleNamespace(run_id="r")


@pytest.fixture(scope="module")
def launchers():
    """The module, without Postgres at hand; what it listens for on every connection ends with these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dagster_postgres", SimpleNamespace(DagsterPostgresStorage=object))
        patch.delitem(sys.modules, "pipelines.run_launcher_docker", raising=False)
        module = importlib.import_module("pipelines.run_launcher_docker")
        yield module
        event.remove(Engine, "do_connect", module.wait_for_server)
        del sys.modules["pipelines.run_launcher_docker"]


class Server:
    """A code server that knows these runs, or does not answer."""

    def __init__(self, *runs, away=False):
        self.runs, self.away = runs, away

    def can_cancel_execution(self, request, timeout):
        if self.away:
            raise DagsterUserCodeUnreachableError("no")
        return serialize_value(CanCancelExecutionResult(can_cancel=request.run_id in self.runs))


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (Server("r"), WorkerStatus.RUNNING),
        (Server("another"), WorkerStatus.FAILED),
        (Server(away=True), WorkerStatus.RUNNING),  # asked again later
        (None, WorkerStatus.RUNNING),  # it ended meanwhile
    ],
)
def test_a_run_that_its_code_server_does_not_know_has_failed(launchers, monkeypatch, server, status):
    launcher = launchers.CheckedRunLauncher()
    monkeypatch.setattr(launcher, "_get_grpc_client_for_termination", lambda run_id: server)
    assert launcher.supports_check_run_worker_health
    assert launcher.check_run_worker_health(RUN).status == status


class Dialect:
    """Refuses a few times, then connects."""

    name = "postgresql"
    loaded_dbapi = SimpleNamespace(OperationalError=ConnectionError)

    def __init__(self, *refusals):
        self.refusals = list(refusals)

    def connect(self, *arguments, **parameters):
        if self.refusals:
            raise ConnectionError(self.refusals.pop(0))
        return arguments, parameters


@pytest.fixture
def clock(launchers, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(launchers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(launchers.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_a_server_that_comes_back_is_waited_for(launchers, clock):
    connected = launchers.wait_for_server(Dialect("starting up", "starting up"), None, ["host"], {"port": 1})
    assert connected == (("host",), {"port": 1})
    assert clock[0] == 2 * launchers.LOOK_INTERVAL_S


def test_a_server_that_stays_away_is_given_up(launchers, clock):
    with pytest.raises(ConnectionError, match="starting up"):
        launchers.wait_for_server(Dialect(*["starting up"] * 100), None, [], {})
    assert launchers.WAIT_S < clock[0] <= launchers.WAIT_S + 2 * launchers.LOOK_INTERVAL_S


@pytest.mark.parametrize("text", ["password authentication failed for user", 'database "x" does not exist'])
def test_a_refusal_is_final(launchers, clock, text):
    with pytest.raises(ConnectionError, match=text):
        launchers.wait_for_server(Dialect(text, text), None, [], {})
    assert clock[0] == 0


def test_other_databases_connect_as_ever(launchers):
    assert launchers.wait_for_server(SimpleNamespace(name="sqlite"), None, [], {}) is None
