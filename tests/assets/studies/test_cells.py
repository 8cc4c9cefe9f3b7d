"""A grid of settings, shown with RaSeRec's: every cell once, nested in MLflow, ranked, gone on with after a failure."""

import json

import dagster as dg
import mlflow
import pandas as pd
import pytest
from plant import failures, metadata

from assets.framework.stage import Job
from assets.studies.cells import LEADERBOARD, Board, _as_config, _as_toml, cells_of
from rarec.raserec.settings import FinetuneSettings
from rarec.studies.sweeps import RaserecSweepSettings

GRID = {"memories": [3, 5], "alpha": [0.4, 0.6]}


@pytest.fixture(scope="module")
def swept(plant):
    result = plant.run(track="sweep", raserec_sweep=GRID)
    assert result.success, failures(result)
    return result


def nested_runs(plant, result, asset):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    parent = metadata(result)[asset]["mlflow_run"].rsplit("/", 1)[1]
    experiment = client.get_run(parent).info.experiment_id
    return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")


def test_every_combination_is_tried_and_ranked(plant, swept):
    table = pd.read_parquet(plant.artifact(swept, "raserec_sweep").file(LEADERBOARD))
    assert set(zip(table["memories"], table["alpha"], strict=True)) == {(3, 0.4), (3, 0.6), (5, 0.4), (5, 0.6)}
    assert table["validation NDCG@10"].is_monotonic_decreasing
    told = metadata(swept)["raserec_sweep"]
    assert told["trials"] == 4
    assert told["best validation NDCG@10"] == table["validation NDCG@10"][0]
    assert told["leaderboard"].count("\n") == 5


def test_each_trial_is_a_nested_run_with_its_settings_and_figures(plant, swept):
    runs = nested_runs(plant, swept, "raserec_sweep")
    table = pd.read_parquet(plant.artifact(swept, "raserec_sweep").file(LEADERBOARD))
    assert len(runs) == 4
    for run in runs:
        row = table[
            (table["memories"] == int(run.data.params["memories"]))
            & (table["alpha"] == float(run.data.params["alpha"]))
        ]
        assert run.info.status == "FINISHED"
        assert run.data.params["epochs"] == "2"  # as of raserec_finetuned of this data set
        assert run.data.metrics["best_NDCG_at_10"] == pytest.approx(row["validation NDCG@10"].item())
        inputs = {one.dataset.name for one in run.inputs.dataset_inputs}
        assert inputs == {"user_sequences", "raserec_pretrained", "memory_bank", "encoder"}


def test_a_finished_trial_is_not_trained_again(plant, monkeypatch):
    trained, train_one = [], Job.train_one

    def fail_at_the_second(self, name, params, job, figures):
        trained.append(name)
        if len(trained) == 2:
            raise dg.Failure("the machine is needed elsewhere", allow_retries=False)
        return train_one(self, name, params, job, figures)

    monkeypatch.setattr(Job, "train_one", fail_at_the_second)
    grid = {"memories": [2, 4], "alpha": [0.5]}
    assert not plant.run(track="sweep", raserec_sweep=grid).success
    (state,) = (plant.home.root / "work" / "raserec_sweep").glob("*/memories-2-*/checkpoint/summary.json")
    before = json.loads(state.read_text())
    monkeypatch.setattr(Job, "train_one", train_one)
    result = plant.run(track="sweep", raserec_sweep=grid)
    assert result.success, failures(result)
    table = pd.read_parquet(plant.artifact(result, "raserec_sweep").file(LEADERBOARD)).set_index("memories")
    assert table.loc[2, "epochs"] == len(before["history"])
    history = json.loads(plant.artifact(result, "raserec_sweep").file("memories-2-alpha-0.5-beta-1.0.json").read_text())
    seconds = [record["train_seconds"] for record in before["history"]]
    (run,) = [one for one in nested_runs(plant, result, "raserec_sweep") if one.data.params["memories"] == "2"]
    assert run.data.metrics["samples_per_s"] == pytest.approx(before["samples"] / sum(seconds))  # of that training
    assert [record["loss"] for record in history["history"]] == [record["loss"] for record in before["history"]]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"alpha": [0.5, 0.5]}, "alpha = [0.5, 0.5] must list at least one value, and none of them twice"),
        ({"memories": []}, "memories = [] must list at least one value"),
        ({"alpha": [0.5, 1.5]}, "trial memories-10-alpha-1.5-beta-1.0 of raserec_finetuned for tiny: alpha is 1.5"),
    ],
)
def test_a_grid_that_is_wrong_somewhere_is_refused_as_a_whole(plant, grid, message):
    result = plant.run(track="sweep", raserec_sweep=grid)
    assert message in failures(result)["raserec_sweep"]


def test_what_does_not_vary_is_as_in_the_data_sets_file(plant):
    grid = RaserecSweepSettings(memories=(3,), alpha=(0.4,), beta=(0.0, 1.0))
    cells = cells_of(FinetuneSettings, grid, plant.spec("tiny"), "raserec_finetuned")
    assert [cell.name for cell in cells] == ["memories-3-alpha-0.4-beta-0.0", "memories-3-alpha-0.4-beta-1.0"]
    assert [cell.values for cell in cells] == [
        {"memories": 3, "alpha": 0.4, "beta": 0.0}, {"memories": 3, "alpha": 0.4, "beta": 1.0}
    ]  # fmt: skip
    assert [(cell.settings.beta, cell.settings.epochs, cell.settings.inner_dim) for cell in cells] == [
        (0.0, 2, 8), (1.0, 2, 8)
    ]  # fmt: skip


def test_the_best_settings_are_told_by_the_stage_that_they_belong_to():
    board = Board(("AUC",), "AUC", "lora_checkpoint", {"shots": "mixed_reit_samples"})
    config = _as_config({"shots": 64, "learning_rate": 0.001}, board)
    assert config == {"mixed_reit_samples": {"shots": 64}, "lora_checkpoint": {"learning_rate": 0.001}}
    assert _as_toml(config) == (
        "```toml\n[overrides.mixed_reit_samples]\nshots = 64\n\n[overrides.lora_checkpoint]\nlearning_rate = 0.001\n```"
    )
