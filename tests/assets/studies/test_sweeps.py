"""Sweeps of both tracks: which settings come out best, and what they give when they are used."""

import json
import tomllib

import pandas as pd
import pytest
from plant import failures, metadata

from assets.studies.cells import LEADERBOARD
from rarec.data.ctr import CtrSamples


def told(result, sweep):
    """What a sweep tells, and the settings that it says were best."""
    assert result.success, failures(result)
    values = metadata(result)[sweep]
    config = json.loads(values["its settings"])
    assert tomllib.loads(values["for the data set's file"].strip("`").removeprefix("toml")) == {"overrides": config}
    return values, config


@pytest.fixture(scope="module")
def rella(seeds, copies, trains_here):
    return copies(seeds("rella").plant)


def test_the_best_settings_can_be_pasted_and_give_the_same_figure(plant):
    values, config = told(plant.run(track="sweep", raserec_sweep={"memories": [3, 5], "alpha": [0.6]}), "raserec_sweep")
    result = plant.run(track="raserec", only=["raserec_finetuned"], **config)
    assert result.success, failures(result)
    assert metadata(result)["raserec_finetuned"]["validation NDCG@10"] == values["best validation NDCG@10"]


def test_shots_and_learning_rates(rella, seeds):
    result = rella.run(track="sweep_rella", rella_sweep={"shots": [16, 100_000, 200_000]})
    _, config = told(result, "rella_sweep")
    available = CtrSamples.load(rella.artifact(seeds("rella").first, "ctr_samples").path).rows("train").stop
    table = pd.read_parquet(rella.artifact(result, "rella_sweep").file(LEADERBOARD))
    assert set(table["shots"]) == {16, available}  # more than there are would be the same training twice
    assert table["validation AUC"].is_monotonic_decreasing
    assert config == {
        "mixed_reit_samples": {"shots": int(table["shots"][0])},
        "lora_checkpoint": {"learning_rate": 1e-3},
    }


def test_numbers_of_behaviours(rella, seeds):
    """With the artifacts' own K a trial gives what the track's own tuning gave; another K does not."""
    first = metadata(seeds("rella").first)
    k = first["textual_samples"]["behaviours"]
    result = rella.run(track="sweep_rella", rella_sweep={"shots": [64], "behaviours": [k, 1]})
    _, config = told(result, "rella_sweep")
    table = pd.read_parquet(rella.artifact(result, "rella_sweep").file(LEADERBOARD)).set_index("behaviours")
    assert set(table.index) == {k, 1}
    figures = table["validation AUC"]
    assert figures[k] == first["lora_checkpoint"]["validation AUC mixed-42"] != figures[1]
    assert config["textual_samples"] == {"behaviours": table.index[0]}
