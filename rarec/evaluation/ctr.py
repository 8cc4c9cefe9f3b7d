"""Metrics of yes/no predictions: AUC, LogLoss, accuracy and calibration, with intervals by resampling users."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
_TINY = 1e-7  # probabilities are kept this far from 0 and 1 in the LogLoss
METRICS = ("AUC", "LogLoss", "ACC", "ECE")


@dataclass(frozen=True)
class Interval:
    """A figure and the interval in which 95 % of resampled ones lie."""

    value: float
    low: float
    high: float


def ctr_metrics(probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> FloatArray:
    """(4,) or (R, 4) figures in the order of `METRICS`; NaN for the AUC of one class.

    AUC is the share of (liked, disliked) pairs in which the liked one is scored higher, ties counting half. LogLoss is
    -mean(log p of what happened). ACC counts p >= 0.5 as yes. ECE is Σ_b n_b/n |mean label - mean p| over ten bins of
    equal width.

    Args:
        probability, label: (N,).
        weight: (N,) or (R, N), how often each sample counts.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(label, dtype=bool)
    w = np.ones((1, len(p))) if weight is None else np.atleast_2d(np.asarray(weight, dtype=np.float64))
    total = w.sum(1)
    clipped = np.clip(p, _TINY, 1 - _TINY)
    loss = -np.where(y, np.log(clipped), np.log1p(-clipped))
    figures = np.column_stack([auc(p, y, w), w @ loss / total, w @ ((p >= 0.5) == y) / total, _ece(p, y, w)])
    return figures[0] if weight is None or np.ndim(weight) == 1 else figures


def auc(p: FloatArray, y: npt.NDArray[np.bool_], w: FloatArray) -> FloatArray:
    """(R,) areas under the ROC curve of (N,) scores under (R, N) weights."""
    order = np.argsort(p, kind="stable")
    starts = np.flatnonzero(np.diff(p[order], prepend=np.nan) != 0)  # groups of equal scores
    liked = np.add.reduceat(np.where(y, w, 0)[:, order], starts, axis=1)
    other = np.add.reduceat(np.where(y, 0, w)[:, order], starts, axis=1)
    won = (liked * (other.cumsum(1) - other / 2)).sum(1)
    pairs = liked.sum(1) * other.sum(1)
    return np.divide(won, pairs, out=np.full(len(w), np.nan), where=pairs > 0)


def calibration(
    probability: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    """Mean probability, share of likes, and count of every bin of equal width; NaN for an empty bin."""
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(label, dtype=np.float64)
    number = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, p, bins) / count
        share = np.bincount(number, y, bins) / count
    return mean, share, count


def intervals(
    probability: npt.ArrayLike, label: npt.ArrayLike, user: npt.ArrayLike, seed: int, resamples: int = 1000
) -> dict[str, Interval]:
    """Every metric with its 95 % interval: whole users are drawn with replacement, as samples of one are alike."""
    value = ctr_metrics(probability, label)
    drawn = ctr_metrics(probability, label, user_weights(user, seed, resamples))
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return {
        name: Interval(*map(float, row)) for name, row in zip(METRICS, zip(value, low, high, strict=True), strict=True)
    }


def difference(
    candidate: npt.ArrayLike, baseline: npt.ArrayLike, label: npt.ArrayLike, user: npt.ArrayLike, seed: int,
    resamples: int = 1000,
) -> dict[str, Interval]:  # fmt: skip
    """Candidate minus baseline on the same samples, with the interval over the same draws of users."""
    weight = user_weights(user, seed, resamples)
    value = ctr_metrics(candidate, label) - ctr_metrics(baseline, label)
    drawn = ctr_metrics(candidate, label, weight) - ctr_metrics(baseline, label, weight)
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return {
        name: Interval(*map(float, row)) for name, row in zip(METRICS, zip(value, low, high, strict=True), strict=True)
    }


def _named(value: FloatArray, drawn: FloatArray) -> dict[str, Interval]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    figures = zip(METRICS, value.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Interval(*figure) for name, *figure in figures}


def user_weights(user: npt.ArrayLike, seed: int, resamples: int) -> FloatArray:
    """(resamples, N) how often each sample's user was drawn."""
    _, code = np.unique(np.asarray(user), return_inverse=True)
    users = int(code.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), size=resamples)
    return drawn[:, code].astype(np.float64)


def _ece(p: FloatArray, y: npt.NDArray[np.bool_], w: FloatArray, bins: int = 10) -> FloatArray:
    number = np.minimum((p * bins).astype(np.int64), bins - 1)
    member = np.zeros((len(p), bins))
    member[np.arange(len(p)), number] = y - p  # weighted sums of label minus probability, bin by bin
    return np.abs(w @ member).sum(1) / w.sum(1)
