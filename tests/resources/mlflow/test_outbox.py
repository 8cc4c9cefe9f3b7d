"""What a run tells a server that is away: it arrives later, or is counted as lost, and the work goes on."""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from mlflow_toys import Away, assert_everything_arrived, everything, materialize
from places import HELPERS
from waiting import wait_for

from rarec.training.worker.node import free_port
from resources.mlflow import outbox as outbox_module
from resources.mlflow import tracked_run
from resources.mlflow.outbox import Outbox, Parcel
from resources.mlflow.tracking import MlflowTracking


@pytest.mark.parametrize("back", ["in mid-run", "at the end"])
def test_what_is_told_to_a_server_that_is_away_arrives_later(tracking, tmp_path, monkeypatch, back):
    monkeypatch.setattr(outbox_module, "DRAIN_INTERVAL_S", 0.01)

    def use(run):
        run._client = server = Away(run._client)
        server.away = True
        everything(run, tmp_path)
        assert len(server.calls) == 1  # it is not asked again and again
        if back == "at the end":
            monkeypatch.setattr(time, "sleep", lambda _: setattr(server, "away", False))
        else:
            server.away = False
            run._outbox._retry_at = 0.0  # half a minute later
            run.log_params({"later": 1})
            assert run._outbox._waiting == []

    recorded, result = materialize(tracking, use)
    assert result.success
    assert_everything_arrived(tracking.tracking_uri, recorded.info.run_id)
    assert sum(line.startswith("MLflow is away: ConnectionError: server away.") for line in result.log_lines) == 1
    assert "MLflow is back; everything that waited has been recorded." in result.log_lines


def test_what_never_arrives_is_told_and_the_asset_succeeds(tracking, tmp_path):
    def use(run):
        run._client = Away(run._client)
        run._client.away = True
        everything(run, tmp_path)
        assert run.log_pyfunc("model", Path("model.py"), {}, []) is None

    started = time.monotonic()
    tracking = MlflowTracking(
        tracking_uri=tracking.tracking_uri, ui_url="", artifact_root=tracking.artifact_root, wait_s=0.1
    )
    _, result = materialize(tracking, use)
    assert result.success
    assert time.monotonic() - started < 10
    (lost,) = (line for line in result.log_lines if line.startswith("Not recorded in MLflow run"))
    assert lost.split(": ", 1)[1] == (
        "model model, 4 metrics, 2 params, input interactions, table metrics_table.json, file page.html, nested run "
        "mixed, inputs of nested run mixed, 2 status FINISHED"
    )


@pytest.mark.parametrize("error", [RuntimeError("boom"), dg.DagsterExecutionInterruptedError()])
def test_a_failed_or_cancelled_run_does_not_wait(tracking, monkeypatch, error):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))

    def use(run):
        run._client = Away(run._client)
        run._client.away = True
        run.log_metrics({"loss": 1.0})
        raise error

    _, result = materialize(tracking, use)
    assert not result.success
    assert any(line.startswith("Not recorded in MLflow run") for line in result.log_lines)


def test_what_was_done_though_the_answer_was_lost_is_not_done_twice(tracking, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr(outbox_module, "DRAIN_INTERVAL_S", 0.01)

    def use(run):
        run._client = server = Away(run._client)
        server.deaf = True
        everything(run, tmp_path)
        server.deaf = False

    recorded, result = materialize(tracking, use)
    assert result.success
    assert_everything_arrived(tracking.tracking_uri, recorded.info.run_id)
    table = MlflowClient(tracking.tracking_uri).load_table(
        recorded.info.experiment_id, "metrics_table.json", [recorded.info.run_id]
    )
    assert len(table) == 1


def test_a_failed_run_tells_what_it_can_before_it_gives_up(tracking):
    def use(run):
        run._client = server = Away(run._client)
        server.away = True
        run.log_params({"late": 1})
        server.away = False  # and nobody would look again for half a minute
        raise RuntimeError("boom")

    recorded, _ = materialize(tracking, use)
    assert (recorded.info.status, recorded.data.params["late"]) == ("FAILED", "1")


def test_what_mlflow_refuses_holds_nothing_up(tracking):
    def use(run):
        run.log_params({"rank": 8})
        run.log_params({"rank": 16})  # MLflow never changes a parameter
        run.log_metrics({"loss": 1.0})

    recorded, result = materialize(tracking, use)
    assert result.success
    assert recorded.info.status == "FINISHED"
    assert recorded.data.metrics == {"loss": 1.0}
    assert any(line.endswith(": params") for line in result.log_lines if line.startswith("Not recorded"))


@contextmanager
def server(folder, port):
    """A tracking server process on an SQLite file and a folder; the block begins before it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_it_answers(url, seconds=60):

    def answers():
        with suppress(requests.ConnectionError):
            return requests.get(f"{url}/health", timeout=5)

    return wait_for(answers, seconds, "the server's answer")


@pytest.mark.slow
def test_a_server_killed_and_started_again_in_mid_run(tmp_path, monkeypatch):
    """With a real server: everything told while it is gone arrives, a model among it."""
    np.save(tmp_path / "weights.npy", np.array([2.0, 3.0]))
    monkeypatch.setattr(tracked_run, "METRICS_INTERVAL_S", 0.0)
    port, uris, started = free_port(), [], []
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        url = first.enter_context(server(tmp_path, port))
        wait_until_it_answers(url)
        tracking = MlflowTracking(tracking_uri=url, ui_url=url, artifact_root="", wait_s=90)

        def use(run):
            first.close()
            everything(run, tmp_path)
            stack.enter_context(server(tmp_path, port))
            started.append(run.run_id)
            code = HELPERS / "dummy_pyfunc.py"
            uris.append(run.log_pyfunc("recommender", code, {"weights": tmp_path / "weights.npy"}, ["numpy"]))

        _, result = materialize(tracking, use)
        assert result.success
        assert not any(line.startswith("Not recorded") for line in result.log_lines)
        assert_everything_arrived(url, started[0])
        mlflow.set_tracking_uri(url)
        assert mlflow.pyfunc.load_model(uris[0]).predict(pd.DataFrame({"x": [10.0]})).tolist() == [20.0, 30.0]


def test_all_drains_together_wait_no_longer_than_told(monkeypatch):
    """Else a model and the end of a run would each hold the work up for the whole time."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def fail():
        raise ConnectionError("away")

    outbox = Outbox(logging.getLogger(), wait_s=5)
    outbox.send(Parcel("model", fail))
    outbox.drain()
    assert now[0] == 5
    outbox.drain()
    assert now[0] == 5
    outbox.give_up()
    assert outbox.lost == "model"
