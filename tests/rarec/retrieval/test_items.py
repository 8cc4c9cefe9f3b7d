import json

import numpy as np
import pytest
from callers_data import unchanged
from pydantic import ValidationError
from raserec_toys import random_sequences, unit
from subr_oracle import retrieve_behaviours_by_index

from rarec.errors import InputError
from rarec.retrieval.items import ItemIndex
from rarec.retrieval.settings import IndexSettings
from rarec.retrieval.subr import retrieve_behaviours

ITEMS, DIM = 1500, 8
SETTINGS = {
    "flat": IndexSettings(),
    "ivf": IndexSettings(index="ivf", ivf_lists=30, ivf_probes=2),
    "hnsw": IndexSettings(index="hnsw", hnsw_links=8, hnsw_search=20),
}
VECTORS = unit(np.random.default_rng(0).standard_normal((ITEMS, DIM))).astype(np.float32)
SHUFFLE = np.random.default_rng(1).permutation(ITEMS)
NUMBERS = np.arange(ITEMS)


def brute_force(queries, k):
    cosine = queries.astype(np.float64) @ VECTORS.astype(np.float64).T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return nearest, np.take_along_axis(cosine, nearest, 1)


def built(kind, order=SHUFFLE):
    with unchanged(VECTORS):
        return ItemIndex.build(np.ascontiguousarray(VECTORS[order]), order, SETTINGS[kind])


def test_ids_are_items_in_whatever_order_vectors_were_added():
    nearest, cosine = brute_force(VECTORS[:200], 10)
    for order in (NUMBERS, SHUFFLE):
        items, scores = built("flat", order).similar(VECTORS[:200], 10)
        assert np.array_equal(items, nearest)
        np.testing.assert_allclose(scores, cosine, atol=1e-6)
    assert np.array_equal(nearest[:, 0], NUMBERS[:200])  # each is most like itself


def test_items_may_have_any_numbers():
    index = ItemIndex.build(VECTORS[:5], np.array([70, 3, 9, 11, 40]), SETTINGS["flat"])
    items, scores = index.similar(VECTORS[:3], 50)
    assert items.shape == scores.shape == (3, 5)  # there are no more
    assert items[:, 0].tolist() == [70, 3, 9]
    assert sorted(items[0].tolist()) == [3, 9, 11, 40, 70]


@pytest.mark.parametrize(("kind", "low", "high"), [("flat", 1.0, 1.0), ("ivf", 0.2, 0.95), ("hnsw", 0.6, 0.99999)])
def test_recall_is_that_of_brute_force(kind, low, high):
    index, queries = built(kind), VECTORS[:300]
    nearest, _ = brute_force(queries, 20)
    found, _ = index.similar(queries, 20)
    shared = [len(set(one) & set(other)) / 20 for one, other in zip(found.tolist(), nearest.tolist(), strict=True)]
    recall = index.recall(VECTORS, queries, 20)
    assert recall == pytest.approx(np.mean(shared), abs=1e-9)
    assert low <= recall <= high  # the loose settings do miss some


def test_what_the_index_does_not_find_is_not_found():
    """One inverted list of thirty holds fewer than 500 items."""
    settings = IndexSettings(index="ivf", ivf_lists=30, ivf_probes=1)
    items, scores = ItemIndex.build(VECTORS, NUMBERS, settings).similar(VECTORS[:4], 500)
    assert (items == -1).any(1).all()
    assert (scores[items == -1] == -np.inf).all()
    assert np.isfinite(scores[items >= 0]).all()
    recall = ItemIndex.build(VECTORS, NUMBERS, settings).recall(VECTORS, VECTORS[:4], 500)
    assert 0 < recall < (items >= 0).mean() + 1e-9


def test_equal_vectors_do_not_lower_recall():
    twins = np.ascontiguousarray(np.repeat(VECTORS[:10], 4, 0))
    assert ItemIndex.build(twins, np.arange(40), SETTINGS["flat"]).recall(twins, twins, 6) == 1


@pytest.mark.parametrize("kind", SETTINGS)
def test_save_and_load(kind, tmp_path):
    index = built(kind)
    index.save(tmp_path)
    back = ItemIndex.load(tmp_path)
    for one, other in zip(index.similar(VECTORS[:50], 7), back.similar(VECTORS[:50], 7), strict=True):
        assert np.array_equal(one, other)
    assert back.settings == index.settings
    assert "minimum_recall" not in json.loads((tmp_path / "index.json").read_text())


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", SETTINGS)
def test_behaviours_by_the_index_are_those_by_products(kind, saved, tmp_path):
    """Ids, selector and ties together; and an approximate index loses no behaviour."""
    vectors = VECTORS.copy()
    vectors[7] = vectors[8] = vectors[9]
    index = ItemIndex.build(np.ascontiguousarray(vectors[SHUFFLE]), SHUFFLE, SETTINGS[kind])
    if saved:
        index.save(tmp_path)
        index = ItemIndex.load(tmp_path)
    few, many = (random_sequences([3, 60, 1, 0, 17, 90, 9], n, seed=3) for n in (12, ITEMS))
    for sequences in (few, many):
        position = np.random.default_rng(0).permutation(len(sequences.items))
        for k in (1, 5, 30):
            arguments = (vectors, sequences.items, sequences.offsets, position, k)
            got = retrieve_behaviours_by_index(index.index, *arguments)
            assert np.array_equal(got, retrieve_behaviours(*arguments)), (len(position), k)


def test_settings_refuse_what_cannot_be():
    with pytest.raises(InputError, match="ivf_lists = 30 exceeds the number of items, 20; lower it"):
        ItemIndex.build(VECTORS[:20], NUMBERS[:20], SETTINGS["ivf"])
    with pytest.raises(ValidationError, match="ivf_probes = 9 exceeds ivf_lists = 4"):
        IndexSettings(index="ivf", ivf_lists=4, ivf_probes=9)
