"""Sweeps: every combination once, ranked by validation figures, nested in MLflow, gone on with after a failure."""

import json
import tomllib

import dagster as dg
import mlflow
import pandas as pd
import pytest
from plant import TINY, Plant, failures, metadata

from assets.framework.stage import Job
from assets.studies.cells import LEADERBOARD
from rarec.data.ctr import CtrSamples
from rarec.studies.sweeps import RaserecSweepSettings

TRAINED = {
    "raserec": ["raw_interactions", "interactions", "item_catalog", "user_profiles", "user_sequences",
                "raserec_pretrained", "memory_bank"],
    "rella": ["raw_interactions", "interactions", "item_catalog", "user_profiles", "ctr_samples", "textual_samples",
              "base_language_model", "semantic_item_vectors", "item_index", "retrieval_enhanced_samples"],
}  # fmt: skip
GRID = {"memories": [3, 5], "alpha": [0.4, 0.6]}


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    with dg.DagsterInstance.ephemeral() as instance:
        plant = Plant(tmp_path_factory.mktemp("plant"), instance, tiny=TINY)
        result = plant.run(track="raserec", only=TRAINED["raserec"])
        assert result.success, failures(result)
        yield plant


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


def test_the_best_settings_can_be_pasted_and_give_the_same_figure(plant, swept):
    told = metadata(swept)["raserec_sweep"]
    config = json.loads(told["its settings"])
    assert tomllib.loads(told["for the data set's file"].strip("`").removeprefix("toml")) == {"overrides": config}
    result = plant.run(track="raserec", only=["raserec_finetuned"], **config)
    assert result.success, failures(result)
    assert metadata(result)["raserec_finetuned"]["validation NDCG@10"] == told["best validation NDCG@10"]


def test_a_finished_trial_is_not_trained_again(plant, monkeypatch):
    trained, train = [], Job.train

    def fail_at_the_second(self, job, output, run, name):
        trained.append(name)
        if len(trained) == 2:
            raise dg.Failure("the machine is needed elsewhere", allow_retries=False)
        return train(self, job, output, run, name)

    monkeypatch.setattr(Job, "train", fail_at_the_second)
    grid = {"memories": [2, 4], "alpha": [0.5]}
    assert not plant.run(track="sweep", raserec_sweep=grid).success
    (state,) = (plant.home.root / "work" / "raserec_sweep").glob("*/memories-2-*/checkpoint/summary.json")
    before = json.loads(state.read_text())
    monkeypatch.setattr(Job, "train", train)
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


def test_shots_and_learning_rates(plant):
    result = plant.run(track="rella", only=TRAINED["rella"])
    assert result.success, failures(result)
    available = CtrSamples.load(plant.artifact(result, "ctr_samples").path).rows("train").stop
    result = plant.run(track="sweep_rella", rella_sweep={"shots": [16, 100_000, 200_000]})
    assert result.success, failures(result)
    table = pd.read_parquet(plant.artifact(result, "rella_sweep").file(LEADERBOARD))
    assert set(table["shots"]) == {16, available}  # more than there are would be the same training twice
    assert table["validation AUC"].is_monotonic_decreasing
    told = metadata(result)["rella_sweep"]
    config = json.loads(told["its settings"])
    assert config == {
        "mixed_reit_samples": {"shots": int(table["shots"][0])},
        "lora_checkpoint": {"learning_rate": 1e-3},
    }
    assert tomllib.loads(told["for the data set's file"].strip("`").removeprefix("toml")) == {"overrides": config}
    assert len(nested_runs(plant, result, "rella_sweep")) == 2


def test_numbers_of_behaviours(plant):
    result = plant.run(track="rella", only=TRAINED["rella"])
    k = metadata(result)["textual_samples"]["behaviours"]
    grid = {"shots": [64], "behaviours": [k, 1]}
    swept = plant.run(track="sweep_rella", rella_sweep=grid)
    assert swept.success, failures(swept)
    table = pd.read_parquet(plant.artifact(swept, "rella_sweep").file(LEADERBOARD)).set_index("behaviours")
    assert set(table.index) == {k, 1}
    # The artifacts' own K gives what the trial without one gives, and another K does not.
    own = plant.run(track="sweep_rella", rella_sweep={"shots": [64]})
    figure = metadata(own)["rella_sweep"]["best validation AUC"]
    assert table.loc[k, "validation AUC"] == figure != table.loc[1, "validation AUC"]
    config = json.loads(metadata(swept)["rella_sweep"]["its settings"])
    assert config["textual_samples"] == {"behaviours": table.index[0]}


def test_trials_in_order():
    grid = RaserecSweepSettings(memories=(1, 2), alpha=(0.5,), beta=(1.0, 2.0))
    assert [tuple(trial.values()) for trial in grid.trials()] == [
        (1, 0.5, 1.0), (1, 0.5, 2.0), (2, 0.5, 1.0), (2, 0.5, 2.0)
    ]  # fmt: skip
