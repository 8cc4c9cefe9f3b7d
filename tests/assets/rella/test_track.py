"""The whole ReLLa graph on a tiny data set: its first run, the same by real workers, and what is refused."""

from pathlib import Path

import pytest
from plant import built, failed_checks, failures, metadata
from transformers import GPT2Config, GPT2LMHeadModel

from rarec.rella.small_llama import train_tokenizer

TRACK = "rella"


RELLA = {
    "raw_interactions", "interactions", "item_catalog", "user_profiles", "ctr_samples", "textual_samples",
    "base_language_model", "semantic_item_vectors", "item_index", "retrieval_enhanced_samples", "mixed_reit_samples",
    "lora_checkpoint", "ctr_predictions", "ctr_baselines", "ctr_metrics",
}  # fmt: skip


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


def test_real_workers_build_the_same(plant, first, real_workers, monkeypatch):
    """From the language model to the predictions; nor does it matter how a process hashes text."""
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    trained = ["base_language_model", "lora_checkpoint", "ctr_predictions"]
    before = {name: plant.artifact(first, name).data_version for name in trained}
    with real_workers() as launched:
        result = plant.run(track="rella", only=trained, **{name: {"force": True} for name in trained})
    assert result.success, failures(result)
    assert built(result) == set(trained)
    assert {name: plant.artifact(result, name).data_version for name in trained} == before
    assert launched == [f"rarec.rella.{one}" for one in ("small_llama", "tuning", "tuning", "predict")]


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
