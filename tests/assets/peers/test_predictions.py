"""Click models of other libraries through Dagster Pipes; the script is replaced by one that knows the answer."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from declarations import CHOSEN_MODEL, RELLA_MODELS
from plant import failures, metadata

from assets.peers import process
from rarec.data.ctr import CtrSamples
from rarec.reports.ctr.report import CtrReport
from resources.workspace import Workspace

TRACK = "rella"
# Gives the likes a high probability; with few rows, all the same one.
STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes():
    job = json.loads(Path(sys.argv[1]).read_text())
    given = np.load(Path(job["exchange"]) / "samples.npz")
    label = given["label"][given["splits"][1]:]
    probability = np.where(label, 0.9, 0.1) if job["rows"] == "all" else np.full(len(label), 0.5)
    output = Path(job["output"])
    np.save(output / "probability.npy", probability)
    (output / "training.json").write_text(json.dumps({"shots": len(given["shots"]), "AUC": 1.0, "seconds": 2.0}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "predictions.py").write_text(STAND_IN)
    monkeypatch.setattr(process, "SCRIPTS", tmp_path)
    monkeypatch.setattr(Workspace, "peers_python", property(lambda _: Path(sys.executable)))


def test_peers_are_fitted_on_all_and_on_the_same_shots(plant, first, stand_in):
    small = {"dim": 4, "behaviours": 5, "epochs": 1}
    result = plant.run(track="peers_rella", peer_predictions={"models": ["din"]}, click_predictions=small)
    assert result.success, failures(result)
    artifact = plant.artifact(result, "peer_predictions")
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    full, few = "torch-rechub DIN, all samples", "torch-rechub DIN, same shots"
    for split in ("valid", "test"):
        table = pd.read_parquet(artifact.file(f"{split}.parquet"))
        assert list(table.columns) == ["sample", full, few]
        assert ((table[full] > 0.5) == samples.label[table["sample"].to_numpy()]).all()
        assert (table[few] == 0.5).all()
    costs = json.loads(artifact.file("costs.json").read_text())
    assert [one["shots"] for one in costs] == [64, 64]
    assert metadata(result)["peer_predictions"][f"test {full} AUC"] == 1
    report = CtrReport.model_validate_json(plant.artifact(result, "peer_ctr_metrics").file("report.json").read_text())
    own = [f"{name}, {rows}" for name in ("SIM", "SASRec for clicks") for rows in ("all samples", "same shots")]
    assert {*RELLA_MODELS, full, few, *own} < set(report.models)
    table = pd.read_parquet(plant.artifact(result, "click_predictions").file("test.parquet"))
    assert list(table.columns) == ["sample", *own]
    assert table[own].nunique().min() > len(table) / 2
    told = metadata(result)["click_predictions"]
    for name in own:
        assert told[f"test {name} AUC"] == pytest.approx(report.of(name, "test")["AUC"].value, abs=1e-4)
    assert report.of(full, "test")["AUC"].value == 1
    assert report.compared(full, CHOSEN_MODEL, "test") is not None
    assert report.read[few] == "64 answers"
    assert report.yardstick not in (full, few)  # that is the best simple method
