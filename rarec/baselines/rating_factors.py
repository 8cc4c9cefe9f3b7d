"""A small factor model of ratings, fitted without settings of its own, and folded in behaviour by behaviour.

The rating of item i by user u is

    r = b_i + v_i x_u + e,   x_u ~ N(0, diag(s, 1, ..., 1)),   (b_i, v_i) ~ N((m, 1, 0, ..., 0), diag(t)),   e ~ N(0, n)

The first loading has mean 1, so that the first factor is the user's own level. Variational expectation-maximisation
(Lim and Teh, "Variational Bayesian approach to movie rating prediction", 2007) estimates s, m, t and n with the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import sparse

from rarec.data.ctr import CtrSamples
from rarec.types import BoolArray, Float64Array, IntArray

ROUNDS = 30
FOLDS = 5  # parts of the users; the model of a training sample leaves its user's part out
MOST_FITTED = 2_000_000  # interactions, of whole users
FACTORS = (8, 16)
LEVEL_DRIFTS = (0.003, 0.01, 0.03)  # share of the level that is forgotten with every behaviour
TASTE_DRIFT = 0.001  # of the other factors


@dataclass(frozen=True)
class RatingFactors:
    """The model, for d factors; items are one row (b_i, v_i) of d + 1.

    Attributes:
        items: (I, d + 1) means of the rows.
        spread: (I, d + 1, d + 1) their covariances.
        users: (d,) variances of the users' factors.
        noise: Variance of e.
    """

    items: Float64Array
    spread: Float64Array
    users: Float64Array
    noise: float

    @classmethod
    def of(cls, user: IntArray, item: IntArray, rating: Float64Array, n_items: int, factors: int, seed: int) -> Self:
        """Fit to ratings of unit scale, one entry of ``user``, ``item`` and ``rating`` each."""
        _, row = np.unique(user, return_inverse=True)
        shape = (int(row.max()) + 1, n_items)
        rated: Any = sparse.csr_matrix((np.ones(len(rating)), (row, item)), shape=shape)
        ratings: Any = sparse.csr_matrix((rating, (row, item)), shape=shape)
        known = rated.getnnz(axis=0) > 0
        k, diagonal = factors + 1, np.arange(factors + 1)
        prior = np.zeros(k)
        prior[:2] = rating.mean(), 1
        items = np.tile(prior, (n_items, 1))
        items[:, 2:] = np.random.default_rng(seed).normal(0, 0.1, (n_items, factors - 1))
        spread, level, noise, wide = np.zeros((n_items, k, k)), 0.2, 1.0, np.full(k, 0.1)
        for _ in range(ROUNDS):
            squares = items[:, :, None] * items[:, None, :] + spread
            precision = (rated @ squares[:, 1:, 1:].reshape(n_items, -1)).reshape(-1, factors, factors) / noise
            precision[:, diagonal[:-1], diagonal[:-1]] += 1 / np.r_[level, np.ones(factors - 1)]
            covariance = np.linalg.inv(precision)
            pull = (ratings @ items[:, 1:] - rated @ squares[:, 0, 1:]) / noise
            x = np.column_stack([np.ones(len(pull)), (covariance @ pull[:, :, None])[:, :, 0]])  # (U, k), 1 for b
            second = x[:, :, None] * x[:, None, :]
            second[:, 1:, 1:] += covariance
            level = float(second[:, 1, 1].mean())

            gram = (rated.T @ second.reshape(len(x), -1)).reshape(n_items, k, k)
            cross = ratings.T @ x
            precision = gram / noise
            precision[:, diagonal, diagonal] += 1 / wide
            spread = np.linalg.inv(precision)
            items = (spread @ (cross / noise + prior / wide)[:, :, None])[:, :, 0]
            squares = items[:, :, None] * items[:, None, :] + spread
            residual = (rating**2).sum() - 2 * (items * cross).sum() + (squares * gram).sum()
            noise = max(float(residual) / len(rating), 1e-6)
            away = (items[known] - prior) ** 2 + spread[known][:, diagonal, diagonal]
            wide = np.maximum(away.mean(0), 1e-8)
            prior[0] = items[known, 0].mean()
        return cls(items, spread, np.r_[level, np.ones(factors - 1)], noise)


def predicted_ratings(
    models: list[RatingFactors],
    model_of: IntArray,
    offsets: IntArray,
    items: IntArray,
    ratings: Float64Array,
    level_drift: float,
) -> tuple[Float64Array, Float64Array]:
    """(M,) mean and variance of every rating, given the same user's earlier ones.

    A Kalman filter over each user's behaviours. Before each, the factors x become a x, and their variances drift back
    to those of the prior: P becomes a P a + (1 - a^2) S, with a = 1 - drift.

    Args:
        models: The models.
        model_of: (U,) which of them holds for each user.
        offsets: (U + 1,) user u has interactions ``offsets[u]`` to ``offsets[u + 1] - 1``, in order of time.
        items, ratings: (M,) of the interactions.
        level_drift: Share of the user's level that is forgotten with every behaviour.
    """
    order = np.argsort(-np.diff(offsets), kind="stable")  # so that the users who are left are always the first
    lengths, start, of = np.diff(offsets)[order], offsets[:-1][order], model_of[order]
    rows, spread = np.stack([m.items for m in models]), np.stack([m.spread for m in models])
    prior, noise = np.stack([m.users for m in models])[of], np.array([m.noise for m in models])
    keep = np.full(prior.shape[1], 1 - TASTE_DRIFT)
    keep[0] = 1 - level_drift
    x = np.column_stack([np.ones(len(order)), np.zeros(prior.shape)])  # (U, d + 1), 1 for b
    variance = prior[:, :, None] * np.eye(prior.shape[1])
    returning = (1 - keep**2) * variance
    mean, spreads = np.empty(len(items)), np.empty(len(items))
    for step in range(int(lengths.max(initial=0))):
        n = int(np.searchsorted(-lengths, -step))
        place, which = start[:n] + step, of[:n]
        if step:
            x[:n, 1:] *= keep
            variance[:n] = variance[:n] * np.outer(keep, keep) + returning[:n]
        row, own = rows[which, items[place]], spread[which, items[place]]
        gain = (variance[:n] @ row[:, 1:, None])[:, :, 0]
        unsure = np.einsum("na,nab,nb->n", x[:n], own, x[:n]) + (own[:, 1:, 1:] * variance[:n]).sum((1, 2))
        mean[place] = (row * x[:n]).sum(1)
        spreads[place] = total = (row[:, 1:] * gain).sum(1) + noise[which] + unsure
        x[:n, 1:] += gain * ((ratings[place] - mean[place]) / total)[:, None]
        variance[:n] -= gain[:, :, None] * gain[:, None, :] / total[:, None, None]
    return mean, spreads


def likings(
    samples: CtrSamples, items: IntArray, ratings: Float64Array, known: BoolArray, threshold: float, seed: int
) -> Iterator[tuple[dict[str, float], Float64Array]]:
    """(N,) how sure each sample's rating is above the threshold, in standard deviations, for every choice of settings.

    A training sample is judged by a model of other users, a validation or test sample by one of all training
    interactions.

    Args:
        samples: The samples.
        items, ratings: (M,) of each interaction, sorted by (user, time).
        known: (M,) which interactions belong to the training split.
        threshold: Rating between dislikes and likes.
        seed: Seed of the users' parts and of the first loadings.
    """
    rng = np.random.default_rng(seed)
    n_users, n_items = len(samples.offsets) - 1, int(items.max()) + 1
    fold = rng.integers(FOLDS, size=n_users)
    user = np.repeat(np.arange(n_users), np.diff(samples.offsets))
    centre, scale = float(ratings[known].mean()), float(ratings[known].std()) or 1.0
    unit, limit = (ratings - centre) / scale, (threshold - centre) / scale
    held = np.bincount(user[known], minlength=n_users)
    drawn = rng.permutation(n_users)
    fitted = np.zeros(n_users, dtype=bool)
    fitted[drawn[held[drawn].cumsum() <= max(MOST_FITTED, held[drawn[0]])]] = True
    parts = [known & fitted[user] & (fold[user] != part) for part in range(FOLDS + 1)]  # the last has all users
    late = np.arange(len(samples)) >= samples.rows("train").stop
    for factors in FACTORS:
        some = [part if part.any() else parts[-1] for part in parts]  # there may be fewer users than parts
        models = [RatingFactors.of(user[p], items[p], unit[p], n_items, factors, seed) for p in some]
        for drift in LEVEL_DRIFTS:
            both = []
            for of in (fold, np.full(n_users, FOLDS)):
                mean, variance = predicted_ratings(models, of, samples.offsets, items, unit, drift)
                both.append(((mean - limit) / np.sqrt(variance))[samples.position])
            yield {"factors": factors, "level drift": drift}, np.where(late, both[1], both[0])
