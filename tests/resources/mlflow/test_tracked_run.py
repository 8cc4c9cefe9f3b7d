"""What a run records: parameters, metrics, inputs, tables, files and models."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow_toys import Away, materialize
from places import HELPERS

from resources.mlflow import tracked_run
from resources.mlflow.tracked_run import metric_name


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


def test_metrics_go_out_together(tracking, monkeypatch):
    """A day's training, a report every half second: about a thousand requests."""

    def use(run):
        run._client = server = Away(run._client)
        server.away = False
        server.client = SimpleNamespace(log_batch=lambda *_, **__: None, set_terminated=lambda *_: None)
        now = time.monotonic()
        clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
        monkeypatch.setattr(tracked_run, "time", clock)
        for step in range(2 * 24 * 3600):
            now += 0.5
            run.log_metrics({"loss": 1.0}, step)
        assert 500 < len(server.calls) < 1500
        assert run._metrics != []
        run.close("FINISHED")
        assert run._metrics == []

    assert materialize(tracking, use)[1].success


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


def test_pyfunc_loads_from_code_and_files_without_pickle(tracking, tmp_path, store_folder):
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
    assert [path for path in store_folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".cloudpickle"}] == []
    assert mlflow.active_run() is None
