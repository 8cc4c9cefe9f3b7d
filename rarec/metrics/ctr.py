"""Metrics of yes/no predictions: AUC, LogLoss, accuracy and calibration, with intervals by resampling users."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rarec.types import BoolArray, Float64Array, IntArray

_TINY = 1e-7  # probabilities are kept this far from 0 and 1 in the LogLoss
METRICS = ("AUC", "LogLoss", "ACC", "ECE")


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval over resamples."""

    value: float
    low: float
    high: float


def ctr_metrics(probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Float64Array:
    """(4,) or (R, 4) figures in the order of `METRICS`; NaN for the AUC if there is only one class.

    AUC is the share of (liked, disliked) pairs in which the liked one has the higher score; ties count half. LogLoss is
    -mean(log p of what happened). ACC counts p >= 0.5 as yes. ECE is Σ_b n_b/n |mean label - mean p| over ten bins of
    equal width.

    Args:
        probability, label: (N,).
        weight: (N,) or (R, N), how often each sample counts.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(label, dtype=bool)
    w = np.ones((1, len(p))) if weight is None else np.atleast_2d(np.asarray(weight, dtype=np.float64))
    total = w.sum(1)
    ece = np.abs(w @ _gaps(p, y)).sum(1) / total
    figures = np.column_stack([auc(p, y, w), w @ _loss(p, y) / total, w @ ((p >= 0.5) == y) / total, ece])
    return figures[0] if weight is None or np.ndim(weight) == 1 else figures


def auc(p: Float64Array, y: BoolArray, w: Float64Array) -> Float64Array:
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
) -> tuple[Float64Array, Float64Array, IntArray]:
    """(bins,) mean probability, share of likes and count of bins of equal width; NaN if a bin is empty."""
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(label, dtype=np.float64)
    number = _bin(p, bins)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, p, bins) / count
        share = np.bincount(number, y, bins) / count
    return mean, share, count


class UserBootstrap:
    """Resamples of the users of N samples. Users are drawn whole, with replacement, as their samples are alike.

    The draws are made once and shared by all models, so that differences between models are paired.

    Args:
        label: (N,) bool.
        user: (N,) any numbers or names.
        seed: Seed of the draws.
        resamples: R, how often U users are drawn from U.
        block: Resamples computed at a time; memory is about 30 bytes per sample and resample of a block.
    """

    def __init__(
        self, label: npt.ArrayLike, user: npt.ArrayLike, seed: int, resamples: int = 1000, block: int = 32
    ) -> None:
        self.label = np.asarray(label, dtype=bool)
        names, self.user = np.unique(np.asarray(user), return_inverse=True)
        self.draws = _draws(len(names), seed, resamples, block)
        self.block = block

    def metrics(self, probability: npt.ArrayLike) -> Float64Array:
        """(R, 4) figures of `ctr_metrics` for (N,) probabilities, each sample counting as often as its user."""
        p = np.asarray(probability, dtype=np.float64)
        # All but the AUC are sums over samples and hence over users: (U, 13) sums per user.
        parts = np.column_stack([np.ones(len(p)), _loss(p, self.label), (p >= 0.5) == self.label, _gaps(p, self.label)])
        of_user = np.column_stack([np.bincount(self.user, part, self.draws.shape[1]) for part in parts.T])
        pairs = _Pairs(p, self.label, self.user)
        blocks = []
        for first in range(0, len(self.draws), self.block):
            weight = self.draws[first : first + self.block].astype(np.float64)
            sums = weight @ of_user
            loss, hits, gaps = sums[:, 1], sums[:, 2], np.abs(sums[:, 3:]).sum(1)
            blocks.append(np.column_stack([pairs.auc(weight), np.column_stack([loss, hits, gaps]) / sums[:, :1]]))
        return np.concatenate(blocks)


def named_intervals(value: Float64Array, drawn: Float64Array) -> dict[str, Interval]:
    """(4,) figures and their (R, 4) resamples as intervals, by metric. Undefined resamples are left out."""
    figures = {}
    for name, own, column in zip(METRICS, value.tolist(), drawn.T, strict=True):
        defined = column[~np.isnan(column)]
        low, high = np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else (np.nan, np.nan)
        figures[name] = Interval(own, low, high)
    return figures


def intervals(
    probability: npt.ArrayLike, label: npt.ArrayLike, user: npt.ArrayLike, seed: int, resamples: int = 1000
) -> dict[str, Interval]:
    """All metrics with 95 % intervals over users; see `UserBootstrap`."""
    drawn = UserBootstrap(label, user, seed, resamples).metrics(probability)
    return named_intervals(ctr_metrics(probability, label), drawn)


def difference(
    candidate: npt.ArrayLike, baseline: npt.ArrayLike, label: npt.ArrayLike, user: npt.ArrayLike, seed: int,
    resamples: int = 1000,
) -> dict[str, Interval]:  # fmt: skip
    """Candidate minus baseline on the same samples, with intervals over the same draws of users."""
    bootstrap = UserBootstrap(label, user, seed, resamples)
    value = ctr_metrics(candidate, label) - ctr_metrics(baseline, label)
    return named_intervals(value, bootstrap.metrics(candidate) - bootstrap.metrics(baseline))


class _Pairs:
    """The (liked, disliked) pairs of N samples, sorted once for any number of weights of users."""

    def __init__(self, p: Float64Array, y: BoolArray, user: IntArray) -> None:
        liked, other = (rows[np.argsort(p[rows], kind="stable")] for rows in (np.flatnonzero(y), np.flatnonzero(~y)))
        self.liked, self.other = user[liked], user[other]
        self.below = np.searchsorted(p[other], p[liked], "left")  # number of disliked ones below each liked one
        self.not_above = np.searchsorted(p[other], p[liked], "right")
        self.ties = bool((self.below != self.not_above).any())

    def auc(self, weight: Float64Array) -> Float64Array:
        """(B,) areas under the ROC curve for weights (B, U) of the users."""
        sums = np.zeros((len(weight), len(self.other) + 1))
        np.cumsum(weight.take(self.other, axis=1), axis=1, out=sums[:, 1:])
        won = sums.take(self.below, axis=1)
        if self.ties:
            won = (won + sums.take(self.not_above, axis=1)) / 2
        of_liked = weight.take(self.liked, axis=1)
        pairs = of_liked.sum(1) * sums[:, -1]
        total = np.einsum("bn,bn->b", of_liked, won)
        return np.divide(total, pairs, out=np.full(len(weight), np.nan), where=pairs > 0)


def _draws(users: int, seed: int, resamples: int, block: int) -> npt.NDArray[np.unsignedinteger]:
    """(R, U) how often each user is drawn, in the smallest type that holds it."""
    rng, chance = np.random.default_rng(seed), np.full(users, 1 / users)
    draws = np.empty((resamples, users), dtype=np.min_scalar_type(users))
    for first in range(0, resamples, block):
        rows = draws[first : first + block]
        rows[:] = rng.multinomial(users, chance, size=len(rows))
    return draws


def _loss(p: Float64Array, y: BoolArray) -> Float64Array:
    """(N,) negative logarithm of the probability of what happened."""
    clipped = np.clip(p, _TINY, 1 - _TINY)
    return -np.where(y, np.log(clipped), np.log1p(-clipped))


def _gaps(p: Float64Array, y: BoolArray, bins: int = 10) -> Float64Array:
    """(N, bins) label minus probability, in the column of the sample's bin. The ECE is made of their sums."""
    gaps = np.zeros((len(p), bins))
    gaps[np.arange(len(p)), _bin(p, bins)] = y - p
    return gaps


def _bin(p: Float64Array, bins: int) -> IntArray:
    return np.minimum((p * bins).astype(np.int64), bins - 1)
