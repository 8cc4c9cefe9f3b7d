"""The whole ReLLa graph on a tiny data set: a language model made here, and one of others from a folder."""

from pathlib import Path

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from plant import TINY, Plant, built, failed_checks, failures, metadata
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rarec.data.ctr import CtrSamples
from rarec.errors import InputError
from rarec.rella.merge import merge
from rarec.rella.small_llama import train_tokenizer
from rarec.reports.ctr.report import CtrReport

RELLA = {
    "raw_interactions", "interactions", "item_catalog", "user_profiles", "ctr_samples", "textual_samples",
    "base_language_model", "semantic_item_vectors", "item_index", "retrieval_enhanced_samples", "mixed_reit_samples",
    "lora_checkpoint", "ctr_predictions", "ctr_metrics",
}  # fmt: skip
MODELS = [
    "zero-shot, recent", "zero-shot, retrieved",
    "tuned on mixed, recent (seed 42)", "tuned on mixed, retrieved (seed 42)",
    "tuned on recent, recent (seed 42)", "tuned on recent, retrieved (seed 42)",
]  # fmt: skip
CHOSEN = "tuned on mixed, retrieved (seed 42)"
YARDSTICK = "logistic regression on five numbers"


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(tmp_path_factory.mktemp("plant"), instance, tiny=TINY)


@pytest.fixture(scope="module")
def first(plant):
    result = plant.run(track="rella")
    assert result.success, failures(result)
    return result


def test_first_run_builds_the_track_and_every_check_passes(first):
    assert built(first) == RELLA
    checks = {(check.asset_key.to_user_string(), check.check_name) for check in first.get_asset_check_evaluations()}
    assert checks >= {
        ("ctr_samples", "no_leak_between_splits"),
        ("semantic_item_vectors", "vectors"),
        ("item_index", "recall"),
    }
    assert failed_checks(first) == {}


def test_no_pickle_and_no_paths_in_the_artifacts(plant, first):
    for name in RELLA - {"raw_interactions", "ctr_metrics"}:
        for file in plant.artifact(first, name).manifest.files:
            assert Path(file).suffix in {
                ".parquet", ".json", ".npy", ".safetensors", ".faiss", ".html", ".png", ".md", ".jinja"
            }, file  # fmt: skip
        for file in plant.artifact(first, name).path.rglob("*"):
            if file.suffix in {".json", ".md", ".jinja"}:
                assert str(plant.home.root) not in file.read_text(), file


def test_a_repeated_tuning_gives_the_same_content(plant, first, monkeypatch):
    before = plant.artifact(first, "lora_checkpoint")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    result = plant.run(track="rella", only=["lora_checkpoint"], lora_checkpoint={"force": True})
    assert result.success, failures(result)
    assert plant.artifact(result, "lora_checkpoint").data_version == before.data_version


def test_the_order_of_modes_decides_which_adapter_is_the_model(plant, first):
    result = plant.run(track="rella", mixed_reit_samples={"modes": ["recent", "mixed"]})
    assert result.success, failures(result)
    assert built(result) == {"mixed_reit_samples", "lora_checkpoint", "ctr_predictions", "ctr_metrics"}
    report = CtrReport.model_validate_json(plant.artifact(result, "ctr_metrics").file("report.json").read_text())
    assert report.chosen == "tuned on recent, retrieved (seed 42)"


def test_another_k_keeps_the_language_model_and_the_vectors(plant, first):
    wanted = ["textual_samples", "base_language_model", "semantic_item_vectors"]
    result = plant.run(track="rella", only=wanted, textual_samples={"behaviours": 7})
    assert result.success, failures(result)
    assert built(result) == {"textual_samples"}
    plant.run(track="rella", only=wanted)  # as it was, for the tests below


def test_mlflow_sets_zero_shot_beside_tuned(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    parent = Path(metadata(first)["ctr_metrics"]["mlflow_run"]).name
    experiment = client.get_run(parent).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.params["model"] for run in nested} == {*MODELS, YARDSTICK}
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    for run in nested:
        assert run.data.metrics["test/AUC"] == pytest.approx(report.of(run.data.params["model"], "test")["AUC"].value)


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


def test_predictions_hold_every_model_and_the_labels(plant, first):
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    predictions = plant.artifact(first, "ctr_predictions")
    for split in ("valid", "test"):
        table = pd.read_parquet(predictions.file(f"{split}.parquet"))
        assert list(table.columns) == ["sample", "label", *MODELS]
        rows = samples.rows(split)
        assert table["sample"].tolist() == list(range(rows.start, rows.stop))
        assert np.array_equal(table["label"], samples.label[rows])
        assert table[MODELS].ge(0).all(axis=None)
        assert table[MODELS].le(1).all(axis=None)
    assert not (table[MODELS[0]] == table[MODELS[1]]).all()  # other histories
    assert not (table[MODELS[0]] == table[MODELS[2]]).all()  # tuned


def test_report_shows_all_models_and_the_yardstick(plant, first):
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    assert set(report.models) == {*MODELS, YARDSTICK}
    assert (report.chosen, report.yardstick) == (CHOSEN, YARDSTICK)
    assert report.compared("zero-shot, retrieved", CHOSEN, "test") is not None
    assert report.compared("tuned on mixed, recent (seed 42)", CHOSEN, "test") is not None
    assert report.compared("tuned on recent, retrieved (seed 42)", CHOSEN, "test") is not None
    assert {(own.history, own.k) for own in report.heterogeneity} >= {("recent", 5), ("retrieved", 30)}
    values = metadata(first)["ctr_metrics"]
    assert values[f"test {CHOSEN} AUC"] == round(report.of(CHOSEN, "test")["AUC"].value, 4)
    assert "data:image/png;base64," in values["plot"]
    assert Path(values["report"]).is_file()


def test_similar_behaviours_are_more_similar(plant, first):
    report = CtrReport.model_validate_json(plant.artifact(first, "ctr_metrics").file("report.json").read_text())
    cosine = {own.history: own.cosine for own in report.similarity}
    assert cosine["retrieved"] > max(cosine["recent"], cosine["random"])


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
    assert probability == pytest.approx(predicted[CHOSEN].tolist(), abs=1e-4)


def test_changing_the_tuning_rebuilds_the_tuning_and_what_follows(plant, first):
    result = plant.run(track="rella", lora_checkpoint={"rank": 3, "targets": ["q_proj"]})
    assert result.success, failures(result)
    assert built(result) == {"lora_checkpoint", "ctr_predictions", "ctr_metrics"}


def test_targets_that_match_nothing_are_refused(plant, first):
    result = plant.run(track="rella", lora_checkpoint={"targets": ["query"]})
    assert "no linear layer named query; it has down_proj, gate_proj" in failures(result)["lora_checkpoint"]


def test_an_approximate_index(plant, first):
    result = plant.run(track="rella", only=["item_index"], item_index={"index": "hnsw"})
    assert result.success, failures(result)
    values = metadata(result)["item_index"]
    assert 0.9 < values["recall_at_20"] <= 1


def test_another_ones_model_needs_nothing_upstream(plant, tmp_path):
    tokenizer = train_tokenizer(["A viewer.\n"], 400, answers=("Yes", "No"))
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = {"base_language_model": {"source": f"path:{tmp_path}"}}
    result = plant.run("demo", track="rella", only=["base_language_model"], **source)
    assert result.success, failures(result)
    manifest = plant.artifact(result, "base_language_model").manifest
    assert set(manifest.inputs) == {"model"}
    assert set(manifest.config) == {"source", "max_tokens", "quantisation", "answers"}


def test_another_ones_model_passes_the_same_track(plant, first, tmp_path):
    texts = ["A viewer: gender F, age 25, writer.\n", "Film (1999): 4\n"] * 3
    tokenizer = train_tokenizer(texts, 400, answers=("Yes", "No"))
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 1024}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = {"base_language_model": {"source": f"path:{tmp_path}"}, "lora_checkpoint": {"targets": ["c_attn"]}}
    result = plant.run(track="rella", **source)
    assert result.success, failures(result)
    values = metadata(result)["base_language_model"]
    assert values["source"] == f"path:{tmp_path}"
    assert values["longest_prompt"] == 512  # the setting; the model could read 1024


@pytest.mark.parametrize(
    ("change", "asset", "message"),
    [
        ({"base_language_model": {"source": "path:/nowhere"}}, "base_language_model", "does not hold a language model"),
        (
            {"base_language_model": {"source": "hub:gpt2"}},
            "base_language_model",
            "with a revision, as the model must not change",
        ),
        (
            {"mixed_reit_samples": {"modes": ["blended"]}},
            "mixed_reit_samples",
            "modes.0 is blended; it must be 'recent'",
        ),
        ({"ctr_samples": {"minimum_history": 500}}, "ctr_samples", "the train split is empty"),
        ({"textual_samples": {"behaviours": 0}}, "textual_samples", "behaviours is 0; it must be at least 1"),
        ({"semantic_item_vectors": {"encoder": "bert"}}, "semantic_item_vectors", "must be language-model, "),
    ],
)
def test_bad_settings_are_refused(plant, first, change, asset, message):
    result = plant.run(track="rella", **change)
    assert list(failures(result)) == [asset]
    assert message in failures(result)[asset]
