import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from places import HELPERS, ROOT

from rarec.errors import InputError
from resources.mlflow import outbox as outbox_module
from resources.mlflow import tracking as tracking_module
from resources.mlflow.tracking import MlflowTracking, metric_name

FIRST_USE = """
import sys
from resources.mlflow.tracking import MlflowTracking
tracking = MlflowTracking(tracking_uri=sys.argv[1], ui_url="", artifact_root=sys.argv[2])
assert "mlflow" not in sys.modules
print(tracking.check())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def first_use(folder):
    """Two processes use a database that does not exist yet; returns what they print and say."""
    uri, artifacts = f"sqlite:///{folder}/db/mlflow.db", str(folder / "artifacts")
    command = [sys.executable, "-c", FIRST_USE, uri, artifacts]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    return MlflowTracking(tracking_uri=uri, ui_url="http://127.0.0.1:5000/", artifact_root=artifacts), outputs


@pytest.fixture
def tracking(first_use):
    return first_use[0]


def test_an_embedded_store_that_was_moved_is_refused(tmp_path):
    def at(home):
        uri = f"sqlite:///{home}/mlflow/mlflow.db"
        return MlflowTracking(tracking_uri=uri, ui_url="", artifact_root=str(home / "mlflow" / "artifacts"))

    home, moved = tmp_path / "home", tmp_path / "moved"
    assert at(home).check() == at(home).check()
    home.rename(moved)
    with pytest.raises(InputError, match=f"store in {moved}/mlflow was made for file://{home}/mlflow/artifacts and"):
        at(moved).check()
    moved.rename(home)
    assert at(home).check()


def test_first_use_is_quiet_and_two_at_once_share_one_experiment(first_use, folder):
    _, outputs = first_use
    assert outputs == [(b"1\n", b""), (b"1\n", b"")]
    assert (folder / "db" / "mlflow.db").is_file()
    assert not (folder / "mlruns").exists()


def materialize(tracking, use, params=None):
    """Materialise an asset whose run is handed to `use`; returns the finished MLflow run and the result."""
    seen = {}

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo"]))
    def ranking_metrics(context: dg.AssetExecutionContext, mlflow_tracking: MlflowTracking) -> dg.MaterializeResult:
        arguments = (context, "ranking_metrics", "demo", "0123456789abcdef", "3", params or {})
        with mlflow_tracking.run(*arguments) as run:
            seen["run"] = run
            use(run)
        return dg.MaterializeResult(metadata={"mlflow": dg.MetadataValue.url(run.url)})

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [ranking_metrics],
            partition_key="demo",
            resources={"mlflow_tracking": tracking},
            instance=instance,
            raise_on_error=False,
        )
        result.log_lines = [record.user_message for record in instance.all_logs(result.run_id)]
    recorded = MlflowClient(tracking.tracking_uri).get_run(seen["run"].run_id) if seen else None
    return recorded, result


def test_run_links_dagster_and_mlflow_both_ways(tracking, folder, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<p>hello</p>")
    recorded, result = materialize(tracking, lambda run: run.log_file(page))
    assert recorded.info.status == "FINISHED"
    tags = recorded.data.tags
    assert tags["dagster.run_id"] == result.run_id
    assert tags["dagster.asset_key"] == "ranking_metrics"
    assert tags["dagster.partition"] == "demo"
    assert tags["rarec.fingerprint"] == "0123456789abcdef"
    assert tags["rarec.code_version"] == "3"
    assert recorded.info.run_name == "ranking_metrics demo 01234567"
    (materialization,) = result.asset_materializations_for_node("ranking_metrics")
    assert materialization.metadata["mlflow"].value == (
        f"http://127.0.0.1:5000/#/experiments/{recorded.info.experiment_id}/runs/{recorded.info.run_id}"
    )
    assert len(list((folder / "artifacts").rglob("report.html"))) == 1
    assert mlflow.active_run() is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "FAILED"), (dg.DagsterExecutionInterruptedError(), "KILLED")],
)
def test_run_that_does_not_finish_says_so(tracking, error, status):
    def fail(run):
        run.log_metrics({"loss": 1.0})
        raise error

    recorded, result = materialize(tracking, fail)
    assert not result.success
    assert recorded.info.status == status
    assert recorded.data.metrics == {"loss": 1.0}


def test_params_are_flattened_and_cut(tracking):
    params = {"encoder": {"kind": "sasrec", "layers": [1, 2], "extra": {}}, "note": "x" * 7000}
    params |= {f"p{number}": number for number in range(150)}
    recorded, _ = materialize(tracking, lambda run: None, params)
    logged = recorded.data.params
    assert len(logged) == 154
    assert logged["encoder.kind"] == "sasrec"
    assert logged["encoder.layers"] == "[1, 2]"
    assert logged["encoder.extra"] == "{}"
    assert logged["p149"] == "149"
    assert len(logged["note"]) == 6000
    assert logged["note"].endswith("x ...")


def test_metrics_by_step(tracking):
    def use(run):
        run.log_metrics({"ndcg@10": 0.25, "hr@10": float("nan")}, step=3)
        run.log_metrics({"loss": 0.5}, step=7)
        run.log_metrics({"loss": 0.25}, step=2)

    recorded, _ = materialize(tracking, use)
    history = MlflowClient(tracking.tracking_uri).get_metric_history
    assert [(m.step, m.value) for m in history(recorded.info.run_id, "ndcg_at_10")] == [(3, 0.25)]
    assert sorted((m.step, m.value) for m in history(recorded.info.run_id, "loss")) == [(2, 0.25), (7, 0.5)]
    assert np.isnan(recorded.data.metrics["hr_at_10"])


def test_metric_names():
    assert metric_name("ndcg@10") == "ndcg_at_10"
    assert metric_name("test/masked: HR-5.head") == "test/masked: HR-5.head"
    assert metric_name("α (mean)") == "_ _mean_"


class Away:
    """Stands before an MLflow client: while `away` every call fails as a server that is gone makes it fail."""

    def __init__(self, client):
        self.client, self.away, self.calls, self.deaf = client, False, [], False

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append(name)
            if self.away:
                raise ConnectionError("server away")
            answer = getattr(self.client, name)(*arguments, **options)
            if self.deaf and not name.startswith(("list", "search")):
                raise ConnectionError("answer lost")
            return answer

        return call


def everything(run, folder):
    """Tell a run all that a run can be told."""
    (folder / "page.html").write_text("<p>hello</p>")
    for step in range(3):
        run.log_metrics({"loss": float(step)}, step)
    run.log_params({"rank": 8})
    run.log_input("interactions", "/store/interactions/demo/abc", "d" * 32)
    run.log_table(pd.DataFrame({"k": [5]}), "metrics_table.json")
    run.log_file(folder / "page.html")
    (folder / "page.html").unlink()  # as when the artifact moves to its final place
    with run.nested("mixed", {"mode": "mixed"}) as nested:
        nested.log_metrics({"AUC": 0.75})


def assert_everything_arrived(uri, run_id):
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["rank"] == "8"
    losses = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in losses) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(run.inputs.dataset_inputs) == 1
    assert {f.path for f in client.list_artifacts(run_id)} == {"metrics_table.json", "page.html"}
    (nested,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert (nested.info.status, nested.data.params, nested.data.metrics) == (
        "FINISHED", {"mode": "mixed"}, {"AUC": 0.75}
    )  # fmt: skip
    assert nested.data.tags["dagster.asset_key"] == "ranking_metrics"
    assert [entry.dataset.digest for entry in nested.inputs.dataset_inputs] == ["d" * 32]


@pytest.mark.parametrize("back", ["in mid-run", "at the end"])
def test_what_is_told_to_a_server_that_is_away_arrives_later(tracking, tmp_path, monkeypatch, back):
    monkeypatch.setattr(outbox_module, "DRAIN_INTERVAL_S", 0.01)

    def use(run):
        run._client = server = Away(run._client)
        server.away = True
        everything(run, tmp_path)
        assert len(server.calls) == 1  # it is not asked again and again
        if back == "at the end":
            monkeypatch.setattr(outbox_module.time, "sleep", lambda _: setattr(server, "away", False))
        else:
            server.away = False
            run._outbox._retry_at = 0.0  # half a minute later
            run.log_params({"later": 1})
            assert run._outbox._waiting == []

    recorded, result = materialize(tracking, use)
    assert result.success
    assert_everything_arrived(tracking.tracking_uri, recorded.info.run_id)
    assert sum(line.startswith("MLflow is away: ConnectionError: server away.") for line in result.log_lines) == 1
    assert "MLflow is back; what waited has been recorded." in result.log_lines


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
    monkeypatch.setattr(outbox_module.time, "sleep", lambda _: pytest.fail("waits"))

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


def test_metrics_go_out_together(tracking, monkeypatch):
    """A day's training, a report every half second: about a thousand requests."""

    def use(run):
        run._client = server = Away(run._client)
        server.away = False
        server.client = SimpleNamespace(log_batch=lambda *_, **__: None, set_terminated=lambda *_: None)
        now = time.monotonic()
        clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
        monkeypatch.setattr(tracking_module, "time", clock)
        for step in range(2 * 24 * 3600):
            now += 0.5
            run.log_metrics({"loss": 1.0}, step)
        assert 500 < len(server.calls) < 1500
        assert run._metrics != []
        run.close("FINISHED")
        assert run._metrics == []

    assert materialize(tracking, use)[1].success


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
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            return requests.get(f"{url}/health", timeout=5)
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


@pytest.mark.slow
def test_a_server_killed_and_started_again_in_mid_run(tmp_path, monkeypatch):
    """With a real server: everything told while it is gone arrives, a model among it."""
    np.save(tmp_path / "weights.npy", np.array([2.0, 3.0]))
    monkeypatch.setattr(tracking_module, "METRICS_INTERVAL_S", 0.0)
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


def test_inputs_tables_and_files(tracking, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")

    def use(run):
        run.log_input("interactions", "/store/interactions/demo/abc", "d" * 32)
        run.log_table(pd.DataFrame({"k": [5, 10], "hr": [0.1, 0.2]}), "metrics_table.json")
        run.log_file(tmp_path / "metrics.json", "reports")

    recorded, result = materialize(tracking, use)
    assert result.success
    (dataset,) = (entry.dataset for entry in recorded.inputs.dataset_inputs)
    assert (dataset.name, dataset.digest) == ("interactions", "d" * 32)
    assert json.loads(dataset.source) == {"uri": "/store/interactions/demo/abc"}
    client = MlflowClient(tracking.tracking_uri)
    run_id = recorded.info.run_id
    assert {f.path for f in client.list_artifacts(run_id)} == {"metrics_table.json", "reports"}
    table = json.loads(Path(client.download_artifacts(run_id, "metrics_table.json", str(tmp_path))).read_text())
    assert table == {"columns": ["k", "hr"], "data": [[5, 0.1], [10, 0.2]]}


def test_pyfunc_loads_from_code_and_files_without_pickle(tracking, tmp_path, folder):
    np.save(tmp_path / "weights.npy", np.array([2.0, 3.0]))
    code = HELPERS / "dummy_pyfunc.py"
    uris = []

    def use(run):
        uris.append(run.log_pyfunc("recommender", code, {"weights": tmp_path / "weights.npy"}, ["numpy"]))

    recorded, result = materialize(tracking, use)
    assert result.success
    loaded = mlflow.pyfunc.load_model(uris[0])
    assert loaded.predict(pd.DataFrame({"x": [10.0, 100.0]})).tolist() == [20.0, 300.0]
    assert [output.model_id for output in recorded.outputs.model_outputs] == [loaded.metadata.model_id]
    assert [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".cloudpickle"}] == []
    assert mlflow.active_run() is None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_unreachable_server_is_told_at_once(tmp_path):
    port = free_port()
    tracking = MlflowTracking(
        tracking_uri=f"http://127.0.0.1:{port}", ui_url=f"http://127.0.0.1:{port}", artifact_root=str(tmp_path)
    )
    started = time.monotonic()
    with pytest.raises(
        InputError, match=rf"MLflow at http://127\.0\.0\.1:{port} cannot be used: ConnectionError: .*MLFLOW_"
    ):
        tracking.check()
    assert time.monotonic() - started < 10


def test_silent_server_is_told_after_the_time_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_module, "CHECK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="cannot be used: ReadTimeout"):
            MlflowTracking(tracking_uri=url, ui_url=url, artifact_root=str(tmp_path)).check()


def test_database_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    tracking = MlflowTracking(
        tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db", ui_url="http://x", artifact_root=str(tmp_path)
    )
    with pytest.raises(InputError, match=r"cannot be used: (NotADirectory|FileExists)Error"):
        tracking.check()


def test_runs_side_by_side_do_not_mix(tracking):
    meet = threading.Barrier(2, timeout=20)
    recorded = {}

    def one(name):
        def use(run):
            meet.wait()
            run.log_metrics({name: 1.0})

        recorded[name], _ = materialize(tracking, use, {"name": name})

    threads = [threading.Thread(target=one, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b"):
        assert recorded[name].data.metrics == {name: 1.0}
        assert recorded[name].data.params == {"name": name}
