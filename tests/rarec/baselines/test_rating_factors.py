"""The factor model of ratings: its filter against exact posteriors and a plain loop; its fit to ratings it has made."""

import numpy as np
import pytest

from rarec.baselines import rating_factors
from rarec.baselines.ctr import eleven_numbers, nine_numbers, training_interactions
from rarec.baselines.rating_factors import FOLDS, RatingFactors, likings, predicted_ratings
from rarec.data.ctr import CtrSettings, build_ctr_samples

D, ITEMS = 3, 15
LENGTHS = [5, 1, 9, 0, 7]
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])


def model_of(seed, spread=0.0):
    rng = np.random.default_rng(seed)
    square = rng.normal(size=(ITEMS, D + 1, D + 1))
    return RatingFactors(
        rng.normal(size=(ITEMS, D + 1)), spread * square @ square.transpose(0, 2, 1), np.array([0.5, 1.0, 1.0]), 0.7
    )


@pytest.fixture
def behaviours():
    rng = np.random.default_rng(5)
    return rng.integers(0, ITEMS, OFFSETS[-1]), rng.normal(size=OFFSETS[-1])


def test_without_drift_the_filter_gives_the_exact_posterior(behaviours, monkeypatch):
    """x given the earlier ratings is normal, with precision diag(1 / S) + V'V / n."""
    monkeypatch.setattr(rating_factors, "TASTE_DRIFT", 0.0)
    items, ratings = behaviours
    models, which = [model_of(0), model_of(1)], np.array([0, 1, 1, 0, 0])
    mean, variance = predicted_ratings(models, which, OFFSETS, items, ratings, 0.0)
    for user, length in enumerate(LENGTHS):
        model = models[which[user]]
        for n in range(length):
            before, place = slice(OFFSETS[user], OFFSETS[user] + n), OFFSETS[user] + n
            bias, loading = model.items[items[before], 0], model.items[items[before], 1:]
            covariance = np.linalg.inv(np.diag(1 / model.users) + loading.T @ loading / model.noise)
            x = covariance @ loading.T @ (ratings[before] - bias) / model.noise
            target = model.items[items[place]]
            assert mean[place] == pytest.approx(target[0] + target[1:] @ x)
            assert variance[place] == pytest.approx(target[1:] @ covariance @ target[1:] + model.noise)


def test_with_drift_and_unsure_items_it_equals_a_plain_loop(behaviours):
    items, ratings = behaviours
    model = model_of(2, spread=0.1)
    mean, variance = predicted_ratings([model], np.zeros(5, dtype=int), OFFSETS, items, ratings, 0.2)
    keep = np.diag([0.8, *[1 - rating_factors.TASTE_DRIFT] * (D - 1)])
    prior = np.diag(model.users)
    for user, length in enumerate(LENGTHS):
        x, covariance = np.zeros(D), prior
        for place in range(OFFSETS[user], OFFSETS[user] + length):
            if place > OFFSETS[user]:
                x, covariance = keep @ x, keep @ covariance @ keep + prior - keep @ prior @ keep
            row, spread = model.items[items[place]], model.spread[items[place]]
            known = np.r_[1, x]
            total = row[1:] @ covariance @ row[1:] + model.noise
            total += known @ spread @ known + np.trace(spread[1:, 1:] @ covariance)
            assert (mean[place], variance[place]) == (pytest.approx(row @ known), pytest.approx(total))
            gain = covariance @ row[1:] / total
            x = x + gain * (ratings[place] - row @ known)
            covariance = covariance - np.outer(gain, gain) * total


def test_a_fit_finds_what_the_ratings_were_made_of():
    rng = np.random.default_rng(0)
    users, items, d = 400, 40, 3
    loading = np.column_stack([np.ones(items), rng.normal(0, 0.8, (items, d - 1))])
    factors, bias = rng.normal(size=(users, d)) * [0.5, 1, 1], rng.normal(0, 0.6, items)
    user, item = np.repeat(np.arange(users), 25), rng.integers(0, items, users * 25)
    expected = bias[item] + (loading[item] * factors[user]).sum(1)
    rating = expected + rng.normal(0, 0.5, len(user))
    model = RatingFactors.of(user, item, rating, items + 1, d, 0)
    assert model.noise == pytest.approx(0.25, abs=0.05)
    assert np.corrcoef(model.items[:items, 0], bias)[0, 1] > 0.95
    offsets = np.arange(0, len(user) + 1, 25)
    mean, variance = predicted_ratings([model], np.zeros(users, dtype=int), offsets, item, rating, 0.0)
    late = np.arange(len(user)) % 25 >= 15
    assert np.corrcoef(mean[late], expected[late])[0, 1] > 0.85
    means = bias[item][late]  # what the items alone tell
    assert ((mean - expected)[late] ** 2).mean() < 0.5 * ((means - expected[late]) ** 2).mean()
    errors = (rating - mean)[late] / np.sqrt(variance[late])
    assert errors.std() == pytest.approx(1, abs=0.1)  # as sure as it says
    assert model.items[items, 0] == pytest.approx(bias.mean(), abs=0.3)  # an item without ratings has the prior


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    lengths = np.full(30, 20)
    user, item = np.repeat(np.arange(30), lengths), rng.integers(0, ITEMS, 600)
    rating = np.clip(np.rint(3.5 + rng.normal(0, 0.8, 30)[user] + rng.normal(0, 0.8, ITEMS)[item]), 1, 5)
    samples = build_ctr_samples(user, rng.permutation(600), rating > 3, 30, "clock", CtrSettings())
    return samples, item, rating


def sure(samples, item, rating):
    known = training_interactions(samples, len(item))
    return {tuple(chosen.items()): own for chosen, own in likings(samples, item, rating, known, 3.5, 7)}


def test_ratings_of_later_or_of_unknown_behaviours_do_not_matter(data):
    """Two ratings of one user change places; mean and variance of all ratings stay."""
    samples, item, rating = data
    before = sure(samples, item, rating)
    assert len(before) == len(rating_factors.FACTORS) * len(rating_factors.LEVEL_DRIFTS)
    train = np.arange(samples.rows("train").stop)
    for user in range(30):
        own = np.arange(samples.offsets[user], samples.offsets[user + 1])
        first, last = next((p, q) for p in own[8:] for q in own[::-1] if rating[p] != rating[q] and p < q)
        changed = rating.copy()
        changed[[first, last]] = rating[[last, first]]
        after = sure(samples, item, changed)
        mine = train[(samples.user[train] == user) & (samples.position[train] <= first)]
        for chosen, liking in after.items():
            np.testing.assert_allclose(liking[mine], before[chosen][mine], atol=1e-9)
        if user == 2:
            break


def test_a_training_sample_is_judged_by_a_model_of_other_users(data, monkeypatch):
    fitted = []
    real = RatingFactors.of.__func__

    def spy(cls, user, *rest):
        fitted.append(set(user.tolist()))
        return real(cls, user, *rest)

    monkeypatch.setattr(RatingFactors, "of", classmethod(spy))
    samples, item, rating = data
    sure(samples, item, rating)
    everyone = set(range(30))
    parts, whole = fitted[:FOLDS], fitted[FOLDS]
    assert whole == everyone
    assert sorted(user for part in parts for user in everyone - part) == list(range(30))


def test_eleven_numbers_are_nine_and_the_chosen_two(data):
    samples, item, rating = data
    numbers, chosen = eleven_numbers(samples, item, rating, rating > 3, 7)
    np.testing.assert_array_equal(numbers[:, :9], nine_numbers(samples, item, rating, rating > 3, 7))
    np.testing.assert_allclose(numbers[:, 9], sure(samples, item, rating)[tuple(chosen.items())])
    assert numbers[:, 10].tolist() == rating[samples.position - 1].tolist()


def test_few_users_have_numbers_too():
    for users in (1, 2):
        user, item = np.repeat(np.arange(users), 30), np.tile(np.arange(15), 2 * users)
        liked = np.arange(len(user)) % 2 == 0
        samples = build_ctr_samples(user, np.arange(len(user)), liked, users, "clock", CtrSettings())
        numbers, _ = eleven_numbers(samples, item, np.where(liked, 5, 1), liked, 0)
        assert np.isfinite(numbers).all()


def test_no_more_than_so_many_interactions_are_fitted(data, monkeypatch):
    counted = []
    real = RatingFactors.of.__func__

    def spy(cls, user, *rest):
        counted.append(len(user))
        return real(cls, user, *rest)

    monkeypatch.setattr(RatingFactors, "of", classmethod(spy))
    monkeypatch.setattr(rating_factors, "MOST_FITTED", 100)
    sure(*data)
    assert 0 < max(counted) <= 100
