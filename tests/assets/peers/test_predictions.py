"""Click models of other libraries through Dagster Pipes; the script is replaced by one that knows the answer."""

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
    told = {"epochs": 3, "best_epoch": 2, "seconds": 2.0, "peak_memory_mib": 100.0, "validation": [0.7, 0.9, 0.8]}
    chosen = {"learning_rate": 0.1 * len(given["shots"])}
    (output / "training.json").write_text(json.dumps({**told, "chosen": chosen}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "predictions.py").write_text(STAND_IN)
    (tmp_path / "requirements.txt").write_text("torch-rechub==1")
    monkeypatch.setattr(process, "SCRIPTS", tmp_path)
    monkeypatch.setattr(Workspace, "peers_python", property(lambda _: Path(sys.executable)))


def test_peers_are_fitted_on_all_and_on_the_same_shots(plant, first, stand_in):
    small = {"dim": 4, "behaviours": 5, "epochs": 1, "dropouts": [0.1]}
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
    assert metadata(result)["peer_predictions"][f"test {full} AUC"] == 1
    assert metadata(result)["peer_predictions"][f"{few}: chosen"] == '{"learning_rate": 6.4}'
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
    efforts = {one.model: one for one in report.efforts}
    assert {full, few, *own, "adapter mixed-42", "scratch language model"} <= set(efforts)
    assert (efforts[full].epochs, efforts[full].best_epoch, efforts[full].seconds_to(0.9)) == (3, 2, 2.0 * 2 / 3)
    assert (len(efforts[own[0]].validation), efforts[own[0]].peak_memory_mib > 0) == (1, True)
    assert report.compared(full, CHOSEN_MODEL, "test") is not None
    assert report.read[few] == "64 answers"
    assert report.yardstick not in (full, few)  # that is the best simple method
