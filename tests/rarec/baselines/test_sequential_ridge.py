"""The sequential ridge against its definition."""

import numpy as np
import pytest
from raserec_toys import random_sequences

from rarec.baselines import sequential_ridge
from rarec.baselines.sequential_ridge import MEMORIES, RidgeSettings, SequentialRidge, choose_ridge
from rarec.metrics.ranking import ranking_table

ITEMS = 12


@pytest.fixture(scope="module")
def sequences():
    """Items repeat within users; one is longer than what counts, some are too short to be split."""
    return random_sequences([6, 1, 70, 9, 3, 0, 22, 4, 12], n_items=ITEMS, seed=4)


def memories(sequences, prefix):
    history = sequences.items[sequences.offsets[sequences.user_of[prefix]] : prefix + 1]
    x = np.zeros(2 * ITEMS)
    for side, (decay, longest, weight) in enumerate(MEMORIES):
        for age, item in enumerate(history[::-1][:longest]):
            x[side * ITEMS + item] += weight * decay**age
    return x


@pytest.mark.parametrize("rows", [7, 10**5])
def test_it_solves_its_problem(sequences, monkeypatch, rows):
    """Ridge regression of every item's column, with the prefixes one by one."""
    monkeypatch.setattr(sequential_ridge, "_ROWS", rows)
    settings = RidgeSettings(l2=3.0, target_power=0.4)
    prefixes = sequences.prefixes("train")
    x = np.array([memories(sequences, prefix) for prefix in prefixes])
    y = np.eye(ITEMS)[sequences.next_items(prefixes)]
    expected = np.linalg.solve(x.T @ x + 3.0 * np.eye(2 * ITEMS), x.T @ y)
    expected *= np.maximum(sequences.train_counts(), 1) ** -0.4
    model = SequentialRidge.of(sequences, settings)
    np.testing.assert_allclose(model.weights, expected, atol=2e-5)
    test = sequences.prefixes("test")
    scores = np.array([memories(sequences, prefix) for prefix in test]).astype(np.float32) @ model.weights
    target = scores[np.arange(len(test)), sequences.next_items(test)]
    best = (scores > target[:, None] + 1e-5).sum(1) + 1
    worst = (scores >= target[:, None] - 1e-5).sum(1)
    ranks = model.rank(sequences, test).rank.numpy()
    assert ((best <= ranks) & (ranks <= worst)).all()


def test_what_is_chosen_is_at_least_as_good_as_the_defaults(sequences):
    valid = sequences.prefixes("valid")

    def figure(model):
        return ranking_table(model.rank(sequences, valid).rank)["NDCG@10"]

    assert figure(choose_ridge(sequences, valid)) >= figure(SequentialRidge.of(sequences, RidgeSettings()))
