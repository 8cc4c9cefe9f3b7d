import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from rarec.errors import InputError
from resources import tracking as tracking_module
from resources.tracking import MlflowTracking, metric_name

FIRST_USE = """
import sys
from resources.tracking import MlflowTracking
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    return MlflowTracking(tracking_uri=uri, ui_url="http://127.0.0.1:5000/", artifact_root=artifacts), outputs


@pytest.fixture
def tracking(first_use):
    return first_use[0]


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
        arguments = (context, "ranking_metrics", "demo", "0123456789abcdef", params or {})
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


def test_metrics_wait_for_a_server_that_is_away(tracking, monkeypatch):
    monkeypatch.setattr(tracking_module, "RETRY_INTERVAL_S", 0.0)

    def use(run):
        log_batch = run._client.log_batch

        def refuse(*_, **__):
            raise ConnectionError("server away")

        run._client.log_batch = refuse
        for step in range(3):
            run.log_metrics({"loss": float(step)}, step)
        run._client.log_batch = log_batch

    recorded, result = materialize(tracking, use)
    assert result.success
    history = MlflowClient(tracking.tracking_uri).get_metric_history(recorded.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert any("3 values wait: server away" in line for line in result.log_lines)


def test_metrics_that_never_arrive_are_counted_and_the_asset_succeeds(tracking):
    def use(run):
        def refuse(*_, **__):
            raise ConnectionError("server away")

        run._client.log_batch = run._client.set_terminated = refuse
        run.log_metrics({"a": 1.0, "b": 2.0})

    _, result = materialize(tracking, use)
    assert result.success
    assert any(line.startswith("2 metric values of MLflow run") for line in result.log_lines)
    assert any("could not be marked FINISHED" in line for line in result.log_lines)


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
    code = Path(__file__).with_name("dummy_pyfunc.py")
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
