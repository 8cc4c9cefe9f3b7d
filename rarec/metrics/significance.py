"""Paired comparison of two models by metric values of the same users."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # loads its parts when they are used

from rarec.errors import InputError
from rarec.types import Float64Array

# Resampled counts are drawn in blocks of at most this many numbers (32 MB).
BLOCK_VALUES = 4 << 20


@dataclass(frozen=True)
class PairedComparison:
    """Candidate minus baseline, over the users for whom both are defined."""

    n_users: int
    baseline_mean: float
    candidate_mean: float
    difference: float
    """Mean of (candidate - baseline)."""
    ci_low: float
    ci_high: float
    confidence: float
    """Level of the interval, such as 0.95."""
    t_test_p: float
    """Two-sided p-value of the paired t-test."""
    wilcoxon_p: float
    """Two-sided p-value of the Wilcoxon signed-rank test."""
    reason: str
    """Why a figure is NaN; empty if none is."""


def compare_paired(
    baseline: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    seed: int,
    n_resamples: int = 2000,
    confidence: float = 0.95,
) -> PairedComparison:
    """Compare two per-user metrics of the same users.

    With d_u = candidate_u - baseline_u over the n users where both are defined:

    - difference: mean(d);
    - confidence interval: percentile bootstrap, the quantiles (1 -/+ confidence) / 2 of mean(d) over resamples of n
      users drawn with replacement;
    - paired t-test: t = mean(d) / (sd(d) / sqrt(n)) with n - 1 degrees of freedom, undefined where all d are equal;
    - Wilcoxon signed-rank test on the d that are not 0, undefined where all are 0.

    Args:
        baseline: (U,) values, NaN where undefined.
        candidate: (U,) values of the same users in the same order.
        seed: Seed of the bootstrap.
        n_resamples: Number of bootstrap resamples.
        confidence: Level of the interval.

    Raises:
        InputError: The two arrays differ in shape.
    """
    first, second = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(
            f"Paired values must belong to the same users, but their shapes are {first.shape} and {second.shape}."
        )
    defined = ~(np.isnan(first) | np.isnan(second))
    first, second = first[defined], second[defined]
    difference = second - first
    n = len(difference)
    if n == 0:
        nan = float("nan")
        return PairedComparison(0, nan, nan, nan, nan, nan, confidence, nan, nan, "no user has both values")

    low, high = bootstrap_interval(difference, seed=seed, n_resamples=n_resamples, confidence=confidence)
    t_test_p = wilcoxon_p = float("nan")
    reason = ""
    if n == 1:
        reason = "a single user allows no test"
    elif not difference.any():
        reason = "both models have equal values for every user"
    else:
        wilcoxon_p = float(scipy.stats.wilcoxon(difference).pvalue)
        if np.ptp(difference) == 0:
            reason = "every user differs by the same amount, so the t-test has no variance to go by"
        else:
            t_test_p = float(scipy.stats.ttest_rel(second, first).pvalue)
    return PairedComparison(
        n_users=n,
        baseline_mean=float(first.mean()),
        candidate_mean=float(second.mean()),
        difference=float(difference.mean()),
        ci_low=low,
        ci_high=high,
        confidence=confidence,
        t_test_p=t_test_p,
        wilcoxon_p=wilcoxon_p,
        reason=reason,
    )


def bootstrap_interval(values: Float64Array, *, seed: int, n_resamples: int, confidence: float) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (n,), none of which is NaN.

    Users with equal values are exchangeable, so a resample is a multinomial draw of how often each distinct value
    occurs. Ranking metrics have few distinct values, so this is far faster than drawing n users each time.
    """
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_VALUES // len(distinct))
    means = [
        rng.multinomial(len(values), counts / len(values), size=min(block, n_resamples - start))
        @ distinct
        / len(values)
        for start in range(0, n_resamples, block)
    ]
    low, high = np.quantile(np.concatenate(means), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)
