"""Stage 1 and the memory bank: what a training tells in Dagster and MLflow, and banks that are refused."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from plant import failures, metadata

from rarec.data.sequences import UserSequences
from rarec.retrieval.memory import MemoryBank


@pytest.mark.parametrize("name", ["raserec_pretrained", "raserec_finetuned"])
def test_training_artifacts_say_how_training_went(plant, first, name):
    values = metadata(first)[name]
    history = json.loads(plant.artifact(first, name).file("history.json").read_text())["history"]
    assert values["epochs"] == len(history) == 2
    assert values["best_epoch"] in (1, 2)
    assert values["validation NDCG@10"] == history[values["best_epoch"] - 1]["NDCG@10"]
    assert "| epoch |" in values["history"]


def test_mlflow_holds_params_metrics_by_epoch_and_inputs(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    told = metadata(first)["raserec_pretrained"]
    run = client.get_run(Path(told["mlflow_run"]).name)
    assert run.data.params["dim"] == "8"
    assert run.data.params["contrastive_weight"] == "0.1"  # also those that nobody set
    history = client.get_metric_history(run.info.run_id, "NDCG_at_10")
    assert [metric.step for metric in history] == [1, 2]
    best = told["validation NDCG@10"]
    assert run.data.metrics["best_NDCG_at_10"] == pytest.approx(best) == max(metric.value for metric in history)
    assert run.data.metrics["loss"] > 0
    (sequences,) = run.inputs.dataset_inputs
    assert sequences.dataset.name == "user_sequences"


def test_the_bank_holds_every_training_prefix_and_its_next_item(plant, first):
    sequences = UserSequences.load(plant.artifact(first, "user_sequences").path)
    bank = MemoryBank.load(plant.artifact(first, "memory_bank").path)
    told = metadata(first)["memory_bank"]
    assert np.array_equal(bank.prefixes, sequences.prefixes("train"))
    assert np.array_equal(bank.targets, sequences.items[bank.prefixes + 1])
    assert told["memories"] == len(bank) == len(bank.representations)
    assert told["encoder"] == bank.encoder == metadata(first)["raserec_pretrained"]["fingerprint"]
    assert told["recall_at_20"] == 1  # the search is exact


def test_an_approximate_bank_tells_how_much_it_finds(plant, first):
    result = plant.run(only=["memory_bank"], memory_bank={"index": "hnsw"})
    told = metadata(result)["memory_bank"]
    assert 0.9 < told["recall_at_20"] <= 1
    bank = MemoryBank.load(plant.artifact(result, "memory_bank").path)
    exact = MemoryBank.load(plant.artifact(first, "memory_bank").path)
    assert np.array_equal(bank.representations, exact.representations)


def test_an_encoder_of_other_sequences_is_refused(plant, first):
    sequences, encoder = (plant.artifact(first, name) for name in ("user_sequences", "raserec_pretrained"))
    plant.put("user_sequences", "borrowed", sequences.path, {"time": "clock"})
    plant.put("raserec_pretrained", "borrowed", encoder.path, {}, inputs={"user_sequences": "of another day"})
    result = plant.run("borrowed", only=["memory_bank"])
    assert failures(result) == {
        "memory_bank": "the raserec_pretrained of borrowed was made from another user_sequences than the current one; "
        "materialise raserec_pretrained again (job `raserec`: make run DATASET=borrowed TRACK=raserec)"
    }


def test_time_cut_without_clock_is_refused(plant, first):
    plant.put("user_sequences", "borrowed", plant.artifact(first, "user_sequences").path, {"time": "order"})
    plant.put("raserec_pretrained", "borrowed", plant.artifact(first, "raserec_pretrained").path, {})
    result = plant.run("borrowed", only=["memory_bank"], memory_bank={"time_cut": True})
    assert failures(result) == {
        "memory_bank": "time_cut needs clock timestamps, and borrowed has none; set time_cut = false"
    }
