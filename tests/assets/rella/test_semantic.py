"""The language model, the items' vectors and their index."""

import numpy as np
import pytest
import torch
from model_folders import change_weights, pickle_weights, save_folder, save_vicuna_form, say
from plant import failures, metadata
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from assets.data.clean import load_table
from rarec.rella.small_llama import train_tokenizer
from rarec.rella.vectors import VECTORS
from rarec.retrieval.items import ItemIndex

TRACK = "rella"


def test_an_approximate_index(plant, first):
    result = plant.run(track="rella", only=["item_index"], item_index={"index": "hnsw"})
    assert result.success, failures(result)
    values = metadata(result)["item_index"]
    assert 0.9 < values["recall_at_20"] <= 1


def test_the_language_model_says_what_it_is_and_what_it_read(plant, first):
    told = metadata(first)["base_language_model"]
    model = AutoModelForCausalLM.from_pretrained(plant.artifact(first, "base_language_model").path)
    assert told["source"] == "scratch"
    assert told["parameters"] == model.num_parameters()
    assert told["epochs"] == 2


def test_vectors_have_length_one_and_tell_items_apart(plant, first):
    vectors = np.load(plant.artifact(first, "semantic_item_vectors").file(VECTORS))
    told = metadata(first)["semantic_item_vectors"]
    items = load_table(plant.artifact(first, "item_catalog"), "items")
    assert vectors.shape == (len(items), told["dimensions"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert len(np.unique(vectors.round(5), axis=0)) > len(items) / 2
    assert 0 < told["explained_variance"] <= 1


def test_the_index_finds_the_items_that_are_most_alike(plant, first):
    vectors = np.load(plant.artifact(first, "semantic_item_vectors").file(VECTORS))
    index = ItemIndex.load(plant.artifact(first, "item_index").path)
    _, cosines = index.similar(vectors[:7], 4)
    best = -np.sort(-(vectors[:7] @ vectors.T), axis=1)[:, :4]
    np.testing.assert_allclose(cosines, best, atol=1e-5)
    assert metadata(first)["item_index"]["recall_at_20"] == 1  # the search is exact
    assert metadata(first)["item_index"]["neighbours"].count("\n") == 6


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


def test_a_folder_as_vicunas_is_used(plant, tmp_path):
    """tokenizer.model without tokenizer.json, weights in *.bin."""
    save_vicuna_form(tmp_path)
    pickle_weights(tmp_path)
    source = {"base_language_model": {"source": f"path:{tmp_path}"}}
    result = plant.run("demo", track="rella", only=["base_language_model"], **source)
    assert result.success, failures(result)


def lacks_weights(folder):
    change_weights(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.v_proj.weight"))


def is_quantised(folder):
    say(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def is_an_adapter(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def has_a_bad_template(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")


def is_spoiled(folder):
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lacks_weights, "the weights lack model.layers.0.self_attn.v_proj.weight, which would be random numbers"),
        (is_quantised, "the weights are quantised (gptq)"),
        (is_an_adapter, "holds an adapter (adapter_config.json), not a language model"),
        (has_a_bad_template, "roles must alternate"),
        (is_spoiled, "the weights model.norm.weight are not all finite"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_at_once(damage, told, plant, tmp_path):
    damage(save_folder(tmp_path))
    source = {"base_language_model": {"source": f"path:{tmp_path}"}}
    result = plant.run("demo", track="rella", only=["base_language_model"], **source)
    assert not result.success
    (message,) = failures(result).values()
    assert told in message
