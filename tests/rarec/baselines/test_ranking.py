import math

import numpy as np
import pytest
from callers_data import unchanged
from raserec_toys import random_sequences, sequences_of

from rarec.baselines import ranking as ranking_module
from rarec.baselines.ranking import ItemNeighbours, rank_by_popularity

ITEMS = 30


@pytest.fixture(scope="module")
def sequences():
    """Random, so that items repeat within users and nearly all pairs meet; some users are too short to be split."""
    return random_sequences([6, 1, 40, 9, 3, 0, 22, 4, 12, 15, 2, 8], n_items=ITEMS, seed=4)


def training_items(sequences):
    """The set of each user's training items."""
    ends = zip(sequences.offsets[:-1], sequences.train_ends, strict=True)
    return [set(sequences.items[start:end].tolist()) for start, end in ends]


def plain_similarities(sequences, neighbours):
    """item -> {neighbour: cosine}, pair by pair."""
    users = training_items(sequences)
    having = [{user for user, items in enumerate(users) if item in items} for item in range(sequences.n_items)]
    found = []
    for item, mine in enumerate(having):
        cosine = {
            other: len(mine & theirs) / math.sqrt(len(mine) * len(theirs))
            for other, theirs in enumerate(having)
            if other != item and mine & theirs
        }
        best = sorted(cosine, key=lambda other: (-cosine[other], other))[:neighbours]
        found.append({other: cosine[other] for other in best})
    return found


def plain_ranks(scores, target, seen):
    """Rank by descending score, then item; among all, and among those not seen (and the target)."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    return order.index(target) + 1, [i for i in order if i not in seen or i == target].index(target) + 1


@pytest.mark.parametrize("pairs", [1, 70, 10**6])
@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_neighbours_equal_those_of_a_plain_loop(sequences, monkeypatch, neighbours, pairs):
    monkeypatch.setattr(ranking_module, "_PAIRS", pairs)
    with unchanged(sequences):
        similarity = ItemNeighbours.of(sequences, neighbours).similarity
    expected = np.zeros((ITEMS, ITEMS))
    for item, near in enumerate(plain_similarities(sequences, neighbours)):
        for other, cosine in near.items():
            expected[item, other] = cosine
    np.testing.assert_allclose(similarity.toarray(), expected, rtol=1e-6)
    assert similarity.nnz == np.count_nonzero(expected)


def test_neighbours_by_hand():
    """User 0 trains on 0, 1, 1; user 1 on 0; users 2 and 3 are too short to be split. Repeats say nothing."""
    sequences = sequences_of([[0, 1, 1, 2, 3], [0, 2, 3], [1, 2], [3]], 5)
    similarity = ItemNeighbours.of(sequences, 5).similarity.toarray()
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 1 / math.sqrt(2 * 2)
    expected[1, 2] = expected[2, 1] = 1 / math.sqrt(2 * 1)
    np.testing.assert_allclose(similarity, expected, rtol=1e-6)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("block", [None, 1, 3])
def test_item_knn_ranks_equal_a_plain_loop(sequences, split, block):
    prefixes = sequences.prefixes(split)
    neighbours = ItemNeighbours.of(sequences, 4)
    with unchanged(sequences, prefixes):
        ranking = neighbours.rank(sequences, prefixes, block)
    near = plain_similarities(sequences, 4)
    expected = []
    for prefix in prefixes:
        history = set(sequences.items[sequences.offsets[sequences.user_of[prefix]] : prefix + 1].tolist())
        scores = np.zeros(ITEMS, dtype=np.float32)
        for item in sorted(history):
            for other, cosine in near[item].items():
                scores[other] += np.float32(cosine)
        expected.append(plain_ranks(scores.tolist(), sequences.items[prefix + 1], history))
    assert [*zip(ranking.rank.tolist(), ranking.rank_masked.tolist(), strict=True)] == expected
    assert len(set(expected)) > 3
    assert not np.array_equal(ranking.rank, ranking.rank_masked)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_popularity_ranks_equal_a_plain_loop(sequences, split):
    prefixes = sequences.prefixes(split)
    ranking = rank_by_popularity(sequences, prefixes)
    counts = [0] * ITEMS
    for start, end in zip(sequences.offsets[:-1], sequences.train_ends, strict=True):
        for item in sequences.items[start:end]:
            counts[item] += 1
    expected = []
    for prefix in prefixes:
        history = set(sequences.items[sequences.offsets[sequences.user_of[prefix]] : prefix + 1].tolist())
        expected.append(plain_ranks(counts, sequences.items[prefix + 1], history))
    assert [*zip(ranking.rank.tolist(), ranking.rank_masked.tolist(), strict=True)] == expected
    assert len(set(expected)) > 3
