"""The page with the figures of the ReLLa track."""

from pathlib import Path

import mlflow
import pytest
from declarations import CHOSEN_MODEL, RELLA_MODELS
from plant import metadata

from rarec.reports.ctr.report import CtrReport

TRACK = "rella"


YARDSTICK = "logistic regression on five numbers"


def test_report_shows_all_models_and_the_yardstick(plant, first):
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    assert set(report.models) == {*RELLA_MODELS, YARDSTICK}
    assert (report.chosen, report.yardstick) == (CHOSEN_MODEL, YARDSTICK)
    assert report.compared("zero-shot, retrieved", CHOSEN_MODEL, "test") is not None
    assert report.compared("tuned on mixed, recent (seed 42)", CHOSEN_MODEL, "test") is not None
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


def test_mlflow_sets_zero_shot_beside_tuned(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    parent = Path(metadata(first)["ctr_metrics"]["mlflow_run"]).name
    experiment = client.get_run(parent).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.params["model"] for run in nested} == {*RELLA_MODELS, YARDSTICK}
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    for run in nested:
        assert run.data.metrics["test/AUC"] == pytest.approx(report.of(run.data.params["model"], "test")["AUC"].value)
