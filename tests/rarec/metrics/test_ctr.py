import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rarec.metrics.ctr import METRICS, UserBootstrap, calibration, ctr_metrics, difference, intervals


def problem(n=300, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    if levels:
        p = np.round(p * levels) / levels  # many ties, 0 and 1 among them
    return p, rng.random(n) < 0.2 + 0.6 * p, rng.integers(0, 40, n)


def weights(y, user, seed, resamples):
    """How often each sample is drawn, all resamples at once."""
    bootstrap = UserBootstrap(y, user, seed, resamples)
    return bootstrap.draws[:, bootstrap.user].astype(float)


def test_by_hand():
    # Pairs (liked, other): .9 beats both, .4 ties with .4 and beats .1: 3.5 of 4.
    figures = dict(zip(METRICS, ctr_metrics([0.9, 0.4, 0.4, 0.1], [True, True, False, False]), strict=True))
    assert figures["AUC"] == 3.5 / 4
    assert figures["LogLoss"] == pytest.approx(-np.log([0.9, 0.4, 0.6, 0.9]).mean())
    assert figures["ACC"] == 3 / 4
    # Bins: .9 alone (off by .1), the two .4 (mean label .5, off by .1), .1 alone (off by .1).
    assert figures["ECE"] == pytest.approx(0.1)


@pytest.mark.parametrize("levels", [None, 7])
def test_equal_to_scikit_learn_weights_included(levels):
    p, y, user = problem(levels=levels)
    weight = weights(y, user, seed=1, resamples=5)
    got = ctr_metrics(p, y, weight)
    assert got.shape == (5, 4)
    for row, w in zip(got, weight, strict=True):
        assert row[0] == pytest.approx(roc_auc_score(y, p, sample_weight=w))
        assert row[1] == pytest.approx(log_loss(y, np.clip(p, 1e-7, 1 - 1e-7), sample_weight=w))
        assert row[2] == pytest.approx(np.average((p >= 0.5) == y, weights=w))
    np.testing.assert_allclose(ctr_metrics(p, y, np.ones(len(p))), ctr_metrics(p, y))


def test_one_class_has_no_auc():
    figures = ctr_metrics([0.2, 0.7], [True, True])
    assert np.isnan(figures[0])
    assert np.isfinite(figures[1:]).all()


def test_calibration_bins():
    mean, share, count = calibration([0.05, 0.05, 0.95, 1.0], [0, 1, 1, 1])
    assert count.tolist() == [2, *[0] * 8, 2]
    assert (mean[0], share[0], share[9]) == (0.05, 0.5, 1.0)
    assert mean[9] == pytest.approx(0.975)
    assert np.isnan(mean[4])
    p, y, _ = problem()
    mean, share, count = calibration(p, y)
    assert ctr_metrics(p, y)[3] == pytest.approx(np.nansum(np.abs(share - mean) * count) / count.sum())


def test_intervals_are_seeded_and_wider_where_users_have_many_samples():
    p, y, user = problem(600)
    one = intervals(p, y, user, seed=3)
    assert one == intervals(p, y, user, seed=3)
    for name in METRICS[:3]:
        assert one[name].low < one[name].value < one[name].high
    # Every sample three times: the same users are drawn, so nothing becomes more certain.
    thrice = intervals(*(np.repeat(part, 3) for part in (p, y, user)), seed=3)
    assert thrice["AUC"].high - thrice["AUC"].low == pytest.approx(one["AUC"].high - one["AUC"].low, rel=1e-6)
    alone = intervals(*(np.repeat(part, 3) for part in (p, y)), np.arange(1800), seed=3)
    assert alone["AUC"].high - alone["AUC"].low < 0.8 * (one["AUC"].high - one["AUC"].low)


def test_differences_are_paired():
    p, y, user = problem(600)
    worse = np.clip(p + np.random.default_rng(5).normal(0, 0.5, len(p)), 0, 1)
    got = difference(p, worse, y, user, seed=0)
    assert got["AUC"].value == pytest.approx(ctr_metrics(p, y)[0] - ctr_metrics(worse, y)[0])
    assert 0 < got["AUC"].low < got["AUC"].value < got["AUC"].high
    same = difference(p, p, y, user, seed=0)
    assert (same["AUC"].low, same["AUC"].high) == (0, 0)


def test_weights_draw_whole_users():
    user = np.array([5, 5, 9, 7])
    weight = weights([True] * 4, user, seed=0, resamples=50)
    assert weight.shape == (50, 4)
    assert np.array_equal(weight[:, 0], weight[:, 1])
    assert (weight[:, [0, 2, 3]].sum(1) == 3).all()


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("block", [1, 7, 20, 32])
def test_resampling_in_blocks_gives_the_figures_of_all_weights_at_once(levels, block):
    p, y, user = problem(levels=levels)
    got = UserBootstrap(y, user, seed=2, resamples=20, block=block).metrics(p)
    np.testing.assert_allclose(got, ctr_metrics(p, y, weights(y, user, seed=2, resamples=20)), rtol=1e-12, atol=1e-15)


def test_resamples_without_one_class_have_no_auc_and_do_not_count():
    # The only liked sample is of user 0, whom about a third of the draws leave out.
    p, y, user = np.array([0.9, 0.2, 0.4]), [True, False, False], [0, 1, 2]
    drawn = UserBootstrap(y, user, seed=0, resamples=200).metrics(p)
    assert 20 < np.isnan(drawn[:, 0]).sum() < 120
    assert np.isfinite(drawn[:, 1:]).all()
    assert intervals(p, y, user, seed=0, resamples=200)["AUC"].low == 1
    alone = intervals(p, [True] * 3, user, seed=0, resamples=20)["AUC"]
    assert np.isnan([alone.value, alone.low, alone.high]).all()
