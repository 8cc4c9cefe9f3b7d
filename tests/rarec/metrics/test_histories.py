import numpy as np
import pandas as pd
import pytest
from callers_data import unchanged
from raserec_toys import random_sequences, unit

from rarec.metrics import histories
from rarec.metrics.histories import distinct_genres, genre_matrix, mean_similarity
from rarec.retrieval.subr import recent_behaviours

ITEMS = 12
SEQUENCES = random_sequences([9, 4, 0, 15], ITEMS, seed=2)
VECTORS = unit(np.random.default_rng(0).standard_normal((ITEMS, 5))).astype(np.float32)
NAMES = pd.Series(["Drama", "Action|Crime", None, "Action", "Crime|Drama|War", ""] * 2)
POSITION = np.setdiff1d(np.arange(28), SEQUENCES.offsets)[::-1]  # all that have a history, latest first
DISTANCES = recent_behaviours(SEQUENCES.offsets, POSITION, 6)


def kept():
    """(items of the history, item of the target) of each row."""
    return [
        ([int(SEQUENCES.items[p - int(d)]) for d in row if d], int(SEQUENCES.items[p]))
        for p, row in zip(POSITION, DISTANCES, strict=True)
    ]


def test_genres_by_hand():
    matrix = genre_matrix(NAMES)  # Action, Crime, Drama, War
    assert matrix[:6].astype(int).tolist() == [[0, 0, 1, 0], [1, 1, 0, 0], [0] * 4, [1, 0, 0, 0], [0, 1, 1, 1], [0] * 4]
    assert matrix.dtype == bool
    assert np.array_equal(genre_matrix(NAMES.astype(object)), matrix)
    assert genre_matrix(pd.Series([None, None])).shape == (2, 0)


@pytest.mark.parametrize("chunk", [4, 4096])
def test_distinct_genres_against_a_plain_loop(monkeypatch, chunk):
    monkeypatch.setattr(histories, "_CHUNK", chunk)
    arguments = (genre_matrix(NAMES), SEQUENCES.items, POSITION, DISTANCES)
    with unchanged(*arguments):
        got = distinct_genres(*arguments)
    names = NAMES.fillna("").tolist()
    counts = [len({g for i in items for g in names[i].split("|") if g}) for items, _ in kept()]
    assert min(counts) == 0
    assert max(counts) == 4
    assert got == pytest.approx(np.mean(counts))


@pytest.mark.parametrize("chunk", [4, 4096])
def test_mean_similarity_against_a_plain_loop(monkeypatch, chunk):
    """The mean is over behaviours, not over histories; places without a behaviour do not count."""
    monkeypatch.setattr(histories, "_CHUNK", chunk)
    assert (DISTANCES == 0).any()
    got = mean_similarity(VECTORS, SEQUENCES.items, POSITION, DISTANCES)
    cosines = [float(VECTORS[i] @ VECTORS[target]) for items, target in kept() for i in items]
    assert got == pytest.approx(np.mean(cosines), rel=1e-5)
    by_history = np.mean([np.mean(VECTORS[items] @ VECTORS[target]) for items, target in kept()])
    assert got != pytest.approx(by_history, abs=1e-4)
