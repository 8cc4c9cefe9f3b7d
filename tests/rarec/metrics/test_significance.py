import math

import numpy as np
import pytest
from scipy import stats

from rarec.errors import InputError
from rarec.metrics.ranking import ndcg
from rarec.metrics.significance import bootstrap_interval, compare_paired


def test_by_hand():
    # d = (1, 0, 1, 0): mean 1/2, sd sqrt(1/3), t = sqrt(3) with 3 degrees of freedom, whose p-value has a closed form.
    result = compare_paired([0, 1, 0, 0], [1, 1, 1, 0], seed=0)
    assert (result.n_users, result.baseline_mean, result.candidate_mean, result.difference) == (4, 1 / 4, 3 / 4, 1 / 2)
    cdf = 1 / 2 + (math.atan(1) + (math.sqrt(3) / math.sqrt(3)) / 2) / math.pi
    assert result.t_test_p == pytest.approx(2 * (1 - cdf))
    assert result.reason == ""
    # Resampled means are multiples of 1/4, and 0 and 1 each have probability 1/16 > 2.5 %.
    assert (result.ci_low, result.ci_high) == (0, 1)


def test_equals_scipy_on_ranking_metrics():
    rng = np.random.default_rng(5)
    baseline = ndcg(rng.integers(1, 40, 500), 10)
    candidate = ndcg(rng.integers(1, 35, 500), 10)
    result = compare_paired(baseline, candidate, seed=1, n_resamples=4000)
    assert result.t_test_p == pytest.approx(stats.ttest_rel(candidate, baseline).pvalue)
    assert result.wilcoxon_p == pytest.approx(stats.wilcoxon(candidate, baseline).pvalue)
    oracle = stats.bootstrap(
        (candidate - baseline,), np.mean, n_resamples=4000, method="percentile", random_state=rng
    ).confidence_interval
    width = oracle.high - oracle.low
    assert abs(result.ci_low - oracle.low) < 0.05 * width
    assert abs(result.ci_high - oracle.high) < 0.05 * width
    assert result.ci_low < result.difference < result.ci_high


def test_interval_is_seeded_and_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = (rng.random(100) < 0.3).astype(float)
        low, high = bootstrap_interval(values, seed=trial, n_resamples=500, confidence=0.9)
        covered += low <= 0.3 <= high
    assert 0.82 <= covered / 200 <= 0.96
    again = bootstrap_interval(values, seed=trial, n_resamples=500, confidence=0.9)
    assert again == (low, high)


def test_blocks_of_resamples_are_all_drawn(monkeypatch):
    monkeypatch.setattr("rarec.metrics.significance.BLOCK_VALUES", 7)
    values = np.array([0.0, 1.0, 2.0])
    low, high = bootstrap_interval(values, seed=3, n_resamples=1001, confidence=0.95)
    assert 0 <= low < 1 < high <= 2


def test_users_with_one_undefined_value_are_left_out():
    nan = math.nan
    result = compare_paired([0.5, nan, 0.25, 0.0], [0.75, 1.0, nan, 0.5], seed=0)
    assert (result.n_users, result.difference) == (2, 0.375)


@pytest.mark.parametrize(
    ("baseline", "candidate", "undefined", "reason"),
    [
        ([0.5, 0.25], [0.5, 0.25], ("t_test_p", "wilcoxon_p"), "equal values for every user"),
        ([0.5, 0.25], [0.75, 0.5], ("t_test_p",), "every user differs by the same amount"),
        ([0.5], [0.75], ("t_test_p", "wilcoxon_p"), "a single user"),
        ([], [], ("t_test_p", "wilcoxon_p", "difference", "ci_low"), "no user has both values"),
    ],
)
def test_undefined_is_nan_with_a_reason(baseline, candidate, undefined, reason):
    result = compare_paired(baseline, candidate, seed=0)
    for name in ("difference", "ci_low", "ci_high", "t_test_p", "wilcoxon_p"):
        assert math.isnan(getattr(result, name)) == (name in undefined or ("ci_low" in undefined and name[:2] == "ci"))
    assert reason in result.reason


def test_unpaired_values_are_an_error():
    with pytest.raises(InputError, match="same users"):
        compare_paired([1, 2], [1, 2, 3], seed=0)
