"""The language model, the items' vectors and their index."""

import numpy as np
from plant import failures, metadata
from transformers import AutoModelForCausalLM

from assets.data.clean import load_table
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
