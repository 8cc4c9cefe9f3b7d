"""Adapters and what they predict; the model in MLflow."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from declarations import CHOSEN_MODEL, RELLA_MODELS
from peft import PeftModel
from plant import built, failures, metadata
from transformers import AutoModelForCausalLM

from rarec.data.ctr import CtrSamples
from rarec.errors import InputError
from rarec.rella.merge import merge
from rarec.reports.ctr.report import CtrReport

TRACK = "rella"


def test_each_adapter_is_a_nested_run(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    parent = Path(metadata(first)["lora_checkpoint"]["mlflow_run"]).name
    experiment = client.get_run(parent).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.params["mode"] for run in nested} == {"mixed", "recent"}
    for run in nested:
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "AUC")) == 2  # one an epoch
        assert run.data.metrics["best_AUC"] > 0


def test_predictions_hold_every_model_and_the_labels(plant, first):
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    predictions = plant.artifact(first, "ctr_predictions")
    for split in ("valid", "test"):
        table = pd.read_parquet(predictions.file(f"{split}.parquet"))
        assert list(table.columns) == ["sample", "label", *RELLA_MODELS]
        rows = samples.rows(split)
        assert table["sample"].tolist() == list(range(rows.start, rows.stop))
        assert np.array_equal(table["label"], samples.label[rows])
        assert table[RELLA_MODELS].ge(0).all(axis=None)
        assert table[RELLA_MODELS].le(1).all(axis=None)
    assert not (table[RELLA_MODELS[0]] == table[RELLA_MODELS[1]]).all()  # other histories
    assert not (table[RELLA_MODELS[0]] == table[RELLA_MODELS[2]]).all()  # tuned


ASK = 'print(json.dumps(model.predict(pd.DataFrame(json.loads(sys.stdin.read())))["probability"].tolist()))'


def test_logged_model_gives_the_predicted_probability_without_this_repository(plant, first, tmp_path):
    table = pd.read_parquet(plant.artifact(first, "interactions").file("interactions.parquet"))
    predicted = pd.read_parquet(plant.artifact(first, "ctr_predictions").file("test.parquet")).head(3)
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    rows = []
    for sample in predicted["sample"]:
        start, target = samples.history_start[sample], samples.position[sample]
        history = table.iloc[start:target]
        rows.append(
            {
                "user": int(table["user_id"].iloc[target]),
                "history": history["item_id"].tolist(),
                "ratings": history["rating"].tolist(),
                "target": int(table["item_id"].iloc[target]),
            }
        )
    probability = plant.ask_alone(metadata(first)["lora_checkpoint"]["mlflow_model"], ASK, rows, tmp_path)
    assert probability == pytest.approx(predicted[CHOSEN_MODEL].tolist(), abs=1e-4)


def test_the_merged_model_gives_the_adapters_probabilities(plant, first, tmp_path):
    base, lora = (plant.artifact(first, name).path for name in ("base_language_model", "lora_checkpoint"))
    merge(base, lora / "mixed-42", tmp_path / "merged")
    tokens = torch.arange(3, 40)[None]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora / "mixed-42").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="merged is not empty"):
        merge(base, lora / "mixed-42", tmp_path / "merged")


def test_the_order_of_modes_decides_which_adapter_is_the_model(plant, first):
    result = plant.run(track="rella", mixed_reit_samples={"modes": ["recent", "mixed"]})
    assert result.success, failures(result)
    assert built(result) == {
        "mixed_reit_samples", "lora_checkpoint", "ctr_predictions", "ctr_baselines", "ctr_metrics",
    }  # fmt: skip
    report = CtrReport.model_validate_json(plant.artifact(result, "ctr_metrics").file("report.json").read_text())
    assert report.chosen == "tuned on recent, retrieved (seed 42)"


def test_changing_the_tuning_rebuilds_the_tuning_and_what_follows(plant, first):
    result = plant.run(track="rella", lora_checkpoint={"rank": 3, "targets": ["q_proj"]})
    assert result.success, failures(result)
    assert built(result) == {"lora_checkpoint", "ctr_predictions", "ctr_metrics"}


def test_targets_that_match_nothing_are_refused(plant, first):
    result = plant.run(track="rella", lora_checkpoint={"targets": ["query"]})
    assert "no linear layer named query; it has down_proj, gate_proj" in failures(result)["lora_checkpoint"]
