import faiss
import numpy as np
import pytest
from callers_data import unchanged
from raserec_toys import random_sequences, unit
from subr_oracle import retrieve_behaviours_by_index

from rarec.retrieval import subr
from rarec.retrieval.subr import recent_behaviours, retrieve_behaviours, same_vector

ITEMS, DIM = 40, 6
LENGTHS = [3, 60, 1, 0, 17, 200, 9]


def item_vectors(twins=True, seed=0):
    vectors = unit(np.random.default_rng(seed).standard_normal((ITEMS, DIM))).astype(np.float32)
    if twins:  # items that cannot be told apart
        vectors[5] = vectors[30]
        vectors[7] = vectors[8] = vectors[9]
    return vectors


def plain_loop(vectors, items, offsets, position, k):
    """Positions kept, by the rule in words: most similar first, of equal ones the latest; told in time order."""
    kept = []
    for p in position:
        start = max(o for o in offsets if o <= p)
        similarity = {
            q: float(np.dot(vectors[items[q]].astype(np.float64), vectors[items[p]].astype(np.float64)))
            for q in range(start, p)
        }
        order = sorted(similarity, key=lambda q: (-round(similarity[q], 9), -q))
        kept.append(sorted(order[:k]))
    return kept


def positions(distances, position):
    return [[int(p) - int(d) for d in row if d] for row, p in zip(distances, position, strict=True)]


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize(("block", "targets"), [(50, 128), (1_000_000, 7), (1_000_000, 1000)])
def test_equals_a_plain_loop_ties_and_repeats_included(monkeypatch, k, block, targets):
    monkeypatch.setattr(subr, "_BLOCK_ELEMENTS", block)
    monkeypatch.setattr(subr, "_BLOCK_TARGETS", targets)
    sequences = random_sequences(LENGTHS, ITEMS, seed=3)
    vectors = item_vectors()
    position = np.random.default_rng(0).permutation(len(sequences.items))
    arguments = (vectors, sequences.items, sequences.offsets, position, k)
    with unchanged(*arguments):
        got = retrieve_behaviours(*arguments)
    assert got.shape == (len(position), k)
    assert positions(got, position) == plain_loop(*arguments)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_faiss_path_gives_the_same_answer(k):
    sequences = random_sequences(LENGTHS, ITEMS, seed=4)
    vectors = item_vectors()
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    position = np.arange(len(sequences.items))
    arguments = (vectors, sequences.items, sequences.offsets, position, k)
    got = retrieve_behaviours_by_index(index, *arguments)
    assert positions(got, position) == plain_loop(*arguments)


def test_shuffling_the_catalogue_changes_nothing():
    """No off-by-one between item ids and rows of vectors can hide: other row numbers, same behaviours."""
    sequences = random_sequences(LENGTHS, ITEMS, seed=5)
    vectors = item_vectors(twins=False)
    position = np.arange(len(sequences.items))
    before = retrieve_behaviours(vectors, sequences.items, sequences.offsets, position, 5)
    shuffle = np.random.default_rng(1).permutation(ITEMS)  # item i becomes shuffle[i]
    moved = np.empty_like(vectors)
    moved[shuffle] = vectors
    after = retrieve_behaviours(moved, shuffle[sequences.items], sequences.offsets, position, 5)
    assert np.array_equal(before, after)
    wrong = retrieve_behaviours(np.roll(vectors, 1, 0), sequences.items, sequences.offsets, position, 5)
    assert not np.array_equal(before, wrong)


@pytest.mark.parametrize("block", [6, 1_000_000])
def test_recent_behaviours_by_hand(monkeypatch, block):
    monkeypatch.setattr(subr, "_BLOCK_ELEMENTS", block)
    offsets = np.array([0, 4, 5, 9])
    out = np.full((5, 3), 7, dtype=np.uint16)
    got = recent_behaviours(offsets, np.array([3, 0, 4, 8, 6]), 3, out=out)
    assert got is out
    assert got.tolist() == [[3, 2, 1], [0, 0, 0], [0, 0, 0], [3, 2, 1], [0, 0, 1]]


def test_similar_behaviours_of_a_short_history_are_the_recent_ones():
    sequences = random_sequences(LENGTHS, ITEMS, seed=6)
    position = sequences.offsets[:-1][np.array(LENGTHS) > 9] + 8  # eight behaviours before each
    similar = retrieve_behaviours(item_vectors(), sequences.items, sequences.offsets, position, 10)
    assert np.array_equal(similar, recent_behaviours(sequences.offsets, position, 10))
    assert (similar[:, 2:] > 0).all()
    assert not similar[:, :2].any()


def test_writes_into_a_file(tmp_path):
    sequences = random_sequences(LENGTHS, ITEMS, seed=7)
    position = np.arange(len(sequences.items))
    expected = retrieve_behaviours(item_vectors(), sequences.items, sequences.offsets, position, 4)
    out = np.lib.format.open_memmap(tmp_path / "kept.npy", "w+", expected.dtype, expected.shape)
    retrieve_behaviours(item_vectors(), sequences.items, sequences.offsets, position, 4, out=out)
    out.flush()
    assert np.array_equal(np.load(tmp_path / "kept.npy"), expected)


def test_same_vector():
    vectors = item_vectors()
    first = same_vector(vectors)
    assert first[30] == first[5] == 5
    assert first[7] == first[8] == first[9] == 7
    assert len(set(first.tolist())) == ITEMS - 3
