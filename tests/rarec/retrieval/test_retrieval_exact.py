import faiss
import numpy as np
import pytest
from raserec_toys import unchanged

from rarec.retrieval import exact
from rarec.retrieval.exact import exact_search


def vectors(n, dim=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 5, 31, 32, 33, 64, 100, 1000])
@pytest.mark.parametrize("k", [1, 3, 32, 40, 1500])
def test_equals_the_flat_index(n, k):
    queries, rows = vectors(17, seed=1), vectors(n, seed=2)
    with unchanged(queries, rows):
        found = exact_search(queries, rows, k)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    assert found.dtype == np.int64
    assert np.array_equal(found, index.search(queries, k)[1])


def test_all_scores_negative():
    queries, rows = np.ones((1, 2), np.float32), -np.arange(1, 37, dtype=np.float32)[:, None].repeat(2, 1)
    assert exact_search(queries, rows, 40).tolist() == [[*range(36), -1, -1, -1, -1]]


def test_blocks_of_queries(monkeypatch):
    queries, rows = vectors(23, seed=1), vectors(70, seed=2)
    whole = exact_search(queries, rows, 9)
    for elements in (1, 96 * 5, 96 * 23):
        monkeypatch.setattr(exact, "_BLOCK_ELEMENTS", elements)
        assert np.array_equal(exact_search(queries, rows, 9), whole)


def test_equal_vectors_are_all_found_once():
    rows = np.concatenate([vectors(40, seed=2), np.full((50, 6), 3.0, np.float32)])
    found = exact_search(np.ones((2, 6), np.float32), rows, 50)
    assert [sorted(one) for one in found.tolist()] == [list(range(40, 90))] * 2


def test_rows_in_any_memory_layout():
    queries, rows = vectors(5, dim=8, seed=1), vectors(90, dim=16, seed=2)[:, ::2]
    assert np.array_equal(exact_search(queries, rows, 7), exact_search(queries, rows.copy(), 7))
    assert exact_search(queries[:0], rows, 7).shape == (0, 7)
