"""Floors and ceilings of quality on real data, short of full training: figures far off mean a fault, up or down.

The whole track runs as `make run` does it. Simple methods are deterministic, so their bounds are narrow.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.realdata]
FOLDER = os.environ.get("RAREC_DATA", "")


def report_of(home, dataset, track, config):
    """The report of the track, from a run of its own."""
    if not Path(FOLDER, dataset).is_dir():
        pytest.skip(f"RAREC_DATA has no {dataset}")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "--dataset", dataset, "--track", track, "--config", json.dumps(config)],
        cwd=ROOT, env={**os.environ, "RAREC_HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (page,) = (line.removeprefix("report: ") for line in done.stdout.splitlines() if line.startswith("report: "))
    return json.loads(Path(page).with_name("report.json").read_text())


def test_raserec_on_beauty_after_a_few_epochs(tmp_path):
    few = {"raserec_pretrained": {"epochs": 4}, "raserec_finetuned": {"epochs": 2}}
    report = report_of(tmp_path, "amazon-beauty", "raserec", {**few, "raserec_controls": {"controls": []}})
    figures = {(one["model"], one["split"], one["protocol"]): one["metrics"] for one in report["scores"]}
    # See benchmarks/results/amazon-beauty.md. At test, the simple methods know the validation items.
    assert figures["popularity", "test", "unmasked"]["HR@10"] == pytest.approx(0.0114, abs=0.0003)
    assert figures["item-KNN", "test", "masked"]["NDCG@10"] == pytest.approx(0.0364, abs=0.001)
    assert figures["EASE", "test", "masked"]["NDCG@10"] == pytest.approx(0.0387, abs=0.001)
    assert figures["transitions", "test", "masked"]["NDCG@10"] == pytest.approx(0.0620, abs=0.002)
    assert figures["transitions + text", "test", "masked"]["NDCG@10"] == pytest.approx(0.0736, abs=0.002)
    # The official curve has .0359 after four epochs, a quicker sketch of the same method .0390.
    assert 0.028 < figures["pre-trained", "valid", "unmasked"]["HR@10"] < 0.06
    before, after = (figures[model, "valid", "unmasked"]["NDCG@10"] for model in ("pre-trained", "fine-tuned"))
    assert 0.9 * before < after < 2.5 * before


def test_rella_on_ml_100k_with_few_shots(tmp_path):
    report = report_of(tmp_path, "ml-100k", "rella", {"mixed_reit_samples": {"shots": 1024}})
    auc = {(one["model"], one["split"]): one["metrics"]["AUC"]["value"] for one in report["scores"]}
    for method, known in (
        ("logistic regression on five numbers", 0.7437),
        ("logistic regression on nine numbers", 0.7823),
        ("logistic regression on eleven numbers", 0.8016),
        ("boosted trees on eleven numbers", 0.8043),
    ):
        assert auc[f"{method}, all samples", "test"] == pytest.approx(known, abs=0.003)
    assert 0.70 < auc["tuned on mixed, retrieved (seed 42)", "test"] < 0.79
    assert 0.6 < auc["untuned, retrieved", "test"] < 0.75
