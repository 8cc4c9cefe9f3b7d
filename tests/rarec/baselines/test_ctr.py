import numpy as np
import pytest

from rarec.baselines.ctr import (
    BEHAVIOURS,
    FOLDS,
    SMOOTHING,
    collaborative_vectors,
    ctr_baselines,
    fit_logistic,
    fit_trees,
    five_numbers,
    nine_numbers,
    training_interactions,
)
from rarec.data.ctr import CtrSettings, build_ctr_samples
from rarec.metrics.ctr import ctr_metrics

LENGTHS = [30, 8, 40, 12, 25] * 8


@pytest.fixture(scope="module")
def data():
    """Users differ in how much they like, and so do items."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    item = rng.integers(0, 30, len(user))
    times = np.concatenate([np.sort(rng.integers(0, 1000, n)) for n in LENGTHS])
    score = rng.normal(0, 1.5, len(LENGTHS))[user] + rng.normal(0, 1.5, 30)[item]
    liked = rng.random(len(user)) < 1 / (1 + np.exp(-score))
    rating = np.where(liked, 5.0, 2.0)
    samples = build_ctr_samples(user, times, liked, len(LENGTHS), "clock", CtrSettings())
    return user, item, rating, liked, samples


def every(samples):
    """All training samples."""
    return np.arange(samples.rows("train").stop)


def test_equal_to_counting(data):
    user, item, rating, liked, samples = data
    got = five_numbers(samples, item, rating, liked, seed=3)
    train = samples.rows("train")
    trained = samples.position[train]
    fold = dict(zip(trained.tolist(), np.random.default_rng(3).integers(FOLDS, size=len(trained)), strict=True))
    overall = liked[trained].mean()
    for row in np.random.default_rng(1).choice(len(samples), 60, replace=False):
        p = samples.position[row]
        before = np.flatnonzero((user == user[p]) & (np.arange(len(user)) < p))
        others = [q for q in trained.tolist() if item[q] == item[p] and fold[q] != fold.get(p)]
        expected = [
            np.log1p(len(before)),
            rating[before].mean(),
            (liked[before].sum() + SMOOTHING * overall) / (len(before) + SMOOTHING),
            np.log1p(len(others)),
            (liked[others].sum() + SMOOTHING * overall) / (len(others) + SMOOTHING),
        ]
        np.testing.assert_allclose(got[row], expected)


def test_it_learns_what_there_is_to_learn(data):
    _, item, rating, liked, samples = data
    test = samples.rows("test")
    features = five_numbers(samples, item, rating, liked, 0)
    predicted = fit_logistic(features, samples.label, every(samples))
    assert 0.65 < ctr_metrics(predicted[test], samples.label[test])[0] < 0.95


def test_nothing_is_learnt_from_shuffled_labels(data):
    user, item, _, liked, _ = data
    shuffled = np.random.default_rng(2).permutation(liked)
    times = np.concatenate([np.arange(n) for n in LENGTHS])
    samples = build_ctr_samples(user, times, shuffled, len(LENGTHS), "clock", CtrSettings())
    test = samples.rows("test")
    predicted = fit_logistic(
        five_numbers(samples, item, np.where(shuffled, 5.0, 2.0), shuffled, 0), samples.label, every(samples)
    )
    assert 0.35 < ctr_metrics(predicted[test], samples.label[test])[0] < 0.65


def test_the_test_split_decides_nothing(data):
    """Other labels in the test split change no feature of training samples and no item number."""
    _, item, rating, liked, samples = data
    changed = liked.copy()
    changed[samples.position[samples.rows("test")]] ^= True
    before, after = (five_numbers(samples, item, rating, labels, 0) for labels in (liked, changed))
    train = samples.rows("train")
    assert np.array_equal(before[train], after[train])
    assert np.array_equal(before[:, 3:], after[:, 3:])


def test_numbers_of_behaviours_equal_a_plain_loop(data):
    user, item, rating, liked, samples = data
    numbers = nine_numbers(samples, item, rating, liked, 0)
    np.testing.assert_array_equal(numbers[:, :5], five_numbers(samples, item, rating, liked, 0))
    last = {}
    for p in samples.position[samples.rows("train")]:
        last[user[p]] = max(last.get(user[p], -1), p)
    known = np.array([p <= last.get(user[p], -1) for p in range(len(user))])
    np.testing.assert_array_equal(training_interactions(samples, len(user)), known)
    assert 0 < known.sum() < len(user)
    overall = rating[known].mean()
    mean = {
        i: (rating[known & (item == i)].sum() + SMOOTHING * overall) / ((known & (item == i)).sum() + SMOOTHING)
        for i in range(30)
    }
    vectors = collaborative_vectors(samples, item, known, 30, 0)
    for row in np.random.default_rng(1).choice(len(samples), 60, replace=False):
        p = samples.position[row]
        before = np.flatnonzero((user == user[p]) & (np.arange(len(user)) < p))
        near = sorted(before, key=lambda b: (-round(float(vectors[item[b]] @ vectors[item[p]]), 6), -b))[:BEHAVIOURS]
        expected = []
        for kept in (before[-BEHAVIOURS:], near):
            expected += [np.mean(rating[kept]), np.mean([rating[b] - mean[item[b]] for b in kept])]
        np.testing.assert_allclose(numbers[row, 5:], expected, atol=1e-9)


def test_items_of_the_same_users_have_similar_vectors():
    """Two circles of users, each with items of its own."""
    user = np.repeat(np.arange(20), 8)
    item = np.concatenate([np.random.default_rng(u).permutation(10)[:8] + 10 * (u % 2) for u in range(20)])
    times = np.tile(np.arange(8), 20)
    samples = build_ctr_samples(user, times, np.random.default_rng(1).random(160) < 0.5, 20, "clock", CtrSettings())
    vectors = collaborative_vectors(samples, item, np.ones(160, dtype=bool), 21, 0)
    cosine = vectors @ vectors.T
    assert cosine[:10, :10].min() > abs(cosine[:10, 10:20]).max() + 0.2
    assert not vectors[20].any()  # nobody had it


def test_trees_learn_and_the_validation_split_chooses_how_many(data):
    _, item, rating, liked, samples = data
    numbers = nine_numbers(samples, item, rating, liked, 0)
    test, valid = samples.rows("test"), samples.rows("valid")
    found = fit_trees(numbers, samples.label, every(samples), valid, 0)
    assert 0.6 < ctr_metrics(found[test], samples.label[test])[0] < 0.95
    again = fit_trees(numbers, samples.label, every(samples), valid, 0)
    np.testing.assert_array_equal(found, again)
    changed = samples.label.copy()
    changed[test] ^= True
    np.testing.assert_array_equal(fit_trees(numbers, changed, every(samples), valid, 0), found)


def test_every_method_is_fitted_on_all_samples_and_on_the_shots(data):
    _, item, rating, liked, samples = data
    shots = every(samples)[::3]
    names = [one.name for one in ctr_baselines(samples, item, rating, liked, shots, 0)]
    assert len(names) == len(set(names)) == 8
    assert sum(name.endswith(", same shots") for name in names) == 4
    assert sum(name.endswith(", all samples") for name in names) == 4
    assert len(list(ctr_baselines(samples, item, rating, liked, every(samples), 0))) == 4


def test_numbers_of_a_training_sample_do_not_tell_its_label():
    """Labels are drawn, so that trees with many rounds have nothing but leaks to learn from."""
    rng = np.random.default_rng(4)
    user, item = np.repeat(np.arange(100), 60), rng.integers(0, 10, 6000)
    liked = rng.random(len(user)) < 0.5
    samples = build_ctr_samples(user, rng.permutation(len(user)), liked, 100, "clock", CtrSettings())
    rating = np.full(len(user), 3.0)  # of itself tells nothing
    train = samples.rows("train")
    items = five_numbers(samples, item, rating, liked, 0)[:, 3:]
    found = fit_trees(items, samples.label, every(samples), train, 0)
    assert ctr_metrics(found[train], samples.label[train])[0] < 0.6  # without the sample alone: 1.0


def test_what_cannot_be_fitted(data):
    """Shots of one label get its share; one user has no vectors, so nothing is near."""
    _, item, rating, liked, samples = data
    likes = np.flatnonzero(samples.label[every(samples)])[:5]
    found = {one.name: one.probability for one in ctr_baselines(samples, item, rating, liked, likes, 0)}
    assert len(found) == 8
    assert all((probability == 1).all() for name, probability in found.items() if name.endswith("same shots"))
    alone = build_ctr_samples(np.zeros(60, dtype=int), np.arange(60), liked[:60], 1, "clock", CtrSettings())
    numbers = nine_numbers(alone, item[:60], rating[:60], liked[:60], 0)
    assert np.isfinite(numbers).all()
