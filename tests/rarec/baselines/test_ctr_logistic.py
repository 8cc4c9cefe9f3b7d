import numpy as np
import pytest

from rarec.baselines.ctr_logistic import SMOOTHING, features_of, fit_and_predict
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


def test_equal_to_counting(data):
    user, item, rating, liked, samples = data
    got = features_of(samples, item, rating, liked)
    train = samples.rows("train")
    trained = samples.position[train]
    overall = liked[trained].mean()
    for row in np.random.default_rng(1).choice(len(samples), 60, replace=False):
        p = samples.position[row]
        before = np.flatnonzero((user == user[p]) & (np.arange(len(user)) < p))
        others = trained[(item[trained] == item[p]) & (trained != p)]
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
    features = features_of(samples, item, rating, liked)
    predicted = fit_and_predict(features, samples)
    assert 0.65 < ctr_metrics(predicted[test], samples.label[test])[0] < 0.95


def test_nothing_is_learnt_from_shuffled_labels(data):
    user, item, _, liked, _ = data
    shuffled = np.random.default_rng(2).permutation(liked)
    times = np.concatenate([np.arange(n) for n in LENGTHS])
    samples = build_ctr_samples(user, times, shuffled, len(LENGTHS), "clock", CtrSettings())
    test = samples.rows("test")
    predicted = fit_and_predict(features_of(samples, item, np.where(shuffled, 5.0, 2.0), shuffled), samples)
    assert 0.35 < ctr_metrics(predicted[test], samples.label[test])[0] < 0.65


def test_the_test_split_decides_nothing(data):
    """Other labels in the test split change no feature of training samples and no item number."""
    _, item, rating, liked, samples = data
    changed = liked.copy()
    changed[samples.position[samples.rows("test")]] ^= True
    before, after = (features_of(samples, item, rating, labels) for labels in (liked, changed))
    train = samples.rows("train")
    assert np.array_equal(before[train], after[train])
    assert np.array_equal(before[:, 3:], after[:, 3:])
