import numpy as np
import pytest

from rarec.champions.promotion import Rule, compare_answers, evidence, with_unknown
from rarec.metrics.ctr import ctr_metrics
from rarec.metrics.significance import compare_paired


def test_what_a_model_does_not_know_it_cannot_tell_apart():
    got = with_unknown(np.array([0.2, np.nan, 0.6, np.nan]))
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.4])
    np.testing.assert_array_equal(with_unknown(np.array([np.nan, np.nan])), [0.5, 0.5])


def test_answers_are_compared_on_the_same_samples():
    label = np.array([True, False, True, False, True])
    user = ["a", "a", "b", "b", "c"]
    baseline = np.array([0.6, 0.5, 0.4, 0.3, 0.2])  # 3 of 6 pairs right
    candidate = np.array([0.6, 0.5, 0.7, 0.3, 0.45])  # 5 of 6
    compared, loss = compare_answers(baseline, candidate, label, user, seed=1)
    assert (compared.baseline_mean, compared.candidate_mean) == pytest.approx((3 / 6, 5 / 6))
    assert compared.difference == pytest.approx(2 / 6)
    assert (compared.n_users, compared.confidence) == (3, 0.95)
    expected = np.log(0.4 * 0.2 / (0.7 * 0.45)) / 5  # of the two samples that they answer otherwise
    assert loss.value == pytest.approx(expected)
    assert loss.low <= loss.value <= loss.high
    assert np.isnan(compared.t_test_p)
    turned, _ = compare_answers(candidate, baseline, label, user, seed=1)
    assert (turned.ci_low, turned.ci_high) == pytest.approx((-compared.ci_high, -compared.ci_low))


@pytest.mark.parametrize(
    ("good", "decision"), [(1.0, "better"), (-1.0, "worse"), (0.0, "not worse")], ids=["better", "worse", "alike"]
)
def test_learnable_differences_are_found(good, decision):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(100), 20)
    taste = rng.standard_normal(2000)
    label = taste + rng.standard_normal(2000) > 0
    noise = rng.standard_normal((2, 2000))
    baseline = 1 / (1 + np.exp(-taste - noise[0]))
    candidate = 1 / (1 + np.exp(-(1 + 0.7 * good) * taste - (noise[1] if good else noise[0] + 1e-3 * noise[1])))
    compared, _ = compare_answers(baseline, candidate, label, user, seed=3)
    assert Rule().decide(compared)[0] == decision
    assert compared.candidate_mean == pytest.approx(ctr_metrics(candidate, label)[0])


@pytest.mark.parametrize(("users", "decision"), [(50, "worse"), (5000, "not worse")])
def test_the_strict_rule_passes_only_what_is_shown_not_to_be_worse(users, decision):
    rng = np.random.default_rng(1)
    baseline = rng.random(users)
    candidate = baseline + 0.2 * rng.standard_normal(users)
    compared = compare_paired(baseline, candidate - (candidate - baseline).mean() + 1e-4, seed=1)
    assert compared.ci_low < 0 < compared.ci_high
    assert Rule(tolerance=0.05).decide(compared)[0] == "not worse"
    found, why = Rule(tolerance=0.05, strict=True).decide(compared)
    assert found == decision
    assert why.endswith("may be more than the tolerance of 5.0% below (strict)") == (decision == "worse")


def test_an_undefined_difference_does_not_pass():
    compared, _ = compare_answers(np.array([0.1, 0.2]), np.array([0.3, 0.4]), [True, True], [1, 2], seed=1)
    assert Rule().decide(compared)[0] == "worse"


def test_evidence_is_rounded_and_plain():
    proof = evidence("better", "why", {"events": 3}, candidate={"AUC": 2 / 3}, champion={"AUC": 0.5})
    assert proof == {
        "decision": "better", "reason": "why", "window": {"events": 3},
        "candidate": {"AUC": 0.666667}, "champion": {"AUC": 0.5},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "tolerance", "decision"),
    [
        ([0.5, 0.6, 0.7, 0.9], 0.01, "better"),
        ([0.1, 0.0, 0.1, 0.2], 0.99, "worse"),  # significantly
        ([0.4, 0.5, 0.5, 0.6], 0.0, "not worse"),
        ([0.4, 0.5, 0.1, 0.7], 0.01, "worse"),  # the interval holds 0, but it looks a good deal worse
        ([0.4, 0.5, 0.1, 0.7], 0.5, "not worse"),
    ],
)
def test_a_difference_is_judged_by_its_interval_and_its_size(candidate, tolerance, decision):
    compared = compare_paired([0.4, 0.5, 0.5, 0.6], candidate, seed=1)
    assert Rule(tolerance=tolerance).decide(compared)[0] == decision
