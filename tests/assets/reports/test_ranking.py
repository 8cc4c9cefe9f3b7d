"""The page with the figures of both stages."""

from pathlib import Path

import mlflow
from plant import metadata


def test_ranking_metrics_page_shows_a_plot_and_both_models(plant, first):
    values = metadata(first)["ranking_metrics"]
    assert "data:image/png;base64," in values["plot"]
    assert Path(values["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    baselines = metadata(first)["ranking_baselines"]
    assert {name: values[name] for name in baselines.keys() & values.keys() if name.startswith("test ")} == {
        name: baselines[name] for name in baselines if name.startswith("test ")
    }
    assert baselines["test item-KNN masked HR@10"] > 0
    for model in ("popularity", "item-KNN", "pre-trained", "fine-tuned"):
        assert 0 <= values[f"test {model} unmasked NDCG@10"] <= values[f"test {model} unmasked HR@10"] <= 1
        assert model in values["tables"]


def test_mlflow_holds_the_report(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    run = Path(metadata(first)["ranking_metrics"]["mlflow_run"]).name
    files = {file.path for file in client.list_artifacts(run)}
    assert files >= {"report.html", "report.json", "plots"}
