"""The page with the figures of the ReLLa track."""

from pathlib import Path

import mlflow
import pandas as pd
import pytest
from declarations import CHOSEN_MODEL, RELLA_MODELS
from plant import metadata

from rarec.reports.ctr.report import CtrReport

TRACK = "rella"


def simple_methods(plant, first):
    table = pd.read_parquet(plant.artifact(first, "ctr_baselines").file("valid.parquet"))
    return [name for name in table.columns if name != "sample"]


def test_report_shows_all_models_and_is_measured_by_the_best_simple_method(plant, first):
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    simple = simple_methods(plant, first)
    assert set(report.models) == {*RELLA_MODELS, *simple}
    assert report.chosen == CHOSEN_MODEL
    assert report.yardstick == max(simple, key=lambda name: report.of(name, "valid")["AUC"].value)
    assert report.compared("untuned, retrieved", CHOSEN_MODEL, "test") is not None
    assert ("tuned on mixed, recent (seed 42)", CHOSEN_MODEL) in {
        (one.baseline, one.candidate) for one in report.causes
    }
    assert report.read[CHOSEN_MODEL] == "every training rating; 64 answers"
    assert report.read["untuned, recent"] == "every training rating"
    assert report.compared("tuned on recent, retrieved (seed 42)", CHOSEN_MODEL, "test") is not None
    assert {(own.history, own.k) for own in report.heterogeneity} >= {("recent", 5), ("retrieved", 30)}
    values = metadata(first)["ctr_metrics"]
    assert values[f"test {CHOSEN_MODEL} AUC"] == round(report.of(CHOSEN_MODEL, "test")["AUC"].value, 4)
    assert "data:image/png;base64," in values["plot"]
    assert Path(values["report"]).is_file()


def test_similar_behaviours_are_more_similar(plant, first):
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    cosine = {own.history: own.cosine for own in report.similarity}
    assert cosine["retrieved"] > max(cosine["recent"], cosine["random"])


def test_mlflow_sets_untuned_beside_tuned(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    parent = Path(metadata(first)["ctr_metrics"]["mlflow_run"]).name
    experiment = client.get_run(parent).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.params["model"] for run in nested} == {*RELLA_MODELS, *simple_methods(plant, first)}
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    for run in nested:
        assert run.data.metrics["test/AUC"] == pytest.approx(report.of(run.data.params["model"], "test")["AUC"].value)
