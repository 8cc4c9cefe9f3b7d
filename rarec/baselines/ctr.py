"""Simple methods for the click-through task: numbers that are known before the event, and what is fitted on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from rarec.baselines.rating_factors import likings
from rarec.data.ctr import CtrSamples
from rarec.metrics.ctr import ctr_metrics
from rarec.retrieval.index import normalised
from rarec.retrieval.subr import recent_behaviours, retrieve_behaviours
from rarec.types import Distances, Float32Array, Float64Array, IntArray

SMOOTHING = 10.0  # pseudo-counts at the overall share of likes or mean rating, added for every user and item
BEHAVIOURS = 10  # latest, and most similar, behaviours that two pairs of numbers look at
DIM = 64  # of the collaborative vectors
ROUNDS = (25, 50, 100, 200, 400)  # of boosting, chosen on validation
FOLDS = 5  # parts of the training split; an item's two numbers leave the sample's own part out
FIVE = ("history length", "history mean rating", "history share of likes", "item count", "item share of likes")
NINE = (
    *FIVE,
    f"mean rating of the latest {BEHAVIOURS}",
    f"mean rating minus item mean of the latest {BEHAVIOURS}",
    f"mean rating of the {BEHAVIOURS} nearest",
    f"mean rating minus item mean of the {BEHAVIOURS} nearest",
)
ELEVEN = (*NINE, "liking by a factor model, in standard deviations", "rating of the latest behaviour")
_CHUNK = 1 << 20

ALL_SAMPLES, SAME_SHOTS = "all samples", "same shots"
"""Ends of the names, which say what a method was fitted on."""


@dataclass(frozen=True)
class CtrBaseline:
    """The probabilities of one method.

    Attributes:
        name: Its name in tables, which says what it was fitted on.
        probability: (N,) of every sample.
        chosen: Its settings that were chosen on validation.
    """

    name: str
    probability: Float64Array
    chosen: dict[str, float] = field(default_factory=dict)


def ctr_baselines(
    samples: CtrSamples,
    items: IntArray,
    rating: npt.ArrayLike,
    liked: npt.ArrayLike,
    shots: IntArray,
    seed: int,
) -> Iterator[CtrBaseline]:
    """Five, nine and eleven numbers in a logistic regression, and eleven in boosted trees, on all samples and on shots.

    Args:
        samples: The samples.
        items, rating, liked: (M,) of each interaction, sorted by (user, time).
        shots: Ascending training samples that the adapters are tuned on.
        seed: Seed of what is random.
    """
    numbers, chosen = eleven_numbers(samples, items, rating, liked, seed)
    train, valid = samples.rows("train"), samples.rows("valid")
    every = np.arange(train.start, train.stop)
    words = {"five": FIVE, "nine": NINE, "eleven": ELEVEN}
    fits: dict[str, Callable[[IntArray], Float64Array]] = {
        f"logistic regression on {word} numbers": partial(fit_logistic, numbers[:, : len(own)], samples.label)
        for word, own in words.items()
    }
    fits["boosted trees on eleven numbers"] = partial(fit_trees, numbers, samples.label, valid=valid, seed=seed)
    for rows, amount in ((every, ALL_SAMPLES), (shots, SAME_SHOTS)):
        if rows is shots and len(shots) == len(every):
            return
        share = float(samples.label[rows].mean())
        for name, fit in fits.items():
            # Nothing can be fitted to likes alone, or to dislikes alone.
            probability = fit(rows) if 0 < share < 1 else np.full(len(samples), share)
            yield CtrBaseline(f"{name}, {amount}", probability, chosen if "eleven" in name else {})


def five_numbers(
    samples: CtrSamples, items: IntArray, rating: npt.ArrayLike, liked: npt.ArrayLike, seed: int
) -> Float64Array:
    """(N, 5) `FIVE` of every sample; counts are logarithms.

    The item's two numbers are counted in the training split. For a training sample, they leave out a fifth of it, drawn
    with the seed, to which the sample belongs: without the sample alone they would tell its label, since they are lower
    for a like than for a dislike of the same item.
    """
    likes, ratings = np.asarray(liked, dtype=np.float64), np.asarray(rating, dtype=np.float64)
    train = samples.rows("train")
    overall = float(samples.label[train].mean())
    before = samples.position - samples.history_start
    mean_rating = _sums_before(ratings, samples) / before
    share = (_sums_before(likes, samples) + SMOOTHING * overall) / (before + SMOOTHING)

    target = items[samples.position]
    n_items = int(items.max()) + 1
    fold = np.full(len(samples), FOLDS)  # validation and test samples leave nothing out
    fold[train] = np.random.default_rng(seed).integers(FOLDS, size=train.stop)
    own = fold * n_items + target

    def in_other_folds(values: Float64Array) -> Float64Array:
        found = np.bincount(own[train], values[train], minlength=(FOLDS + 1) * n_items)
        return found.reshape(FOLDS + 1, n_items).sum(0)[target] - found[own]

    count = in_other_folds(np.ones(len(samples)))
    item_share = (in_other_folds(samples.label.astype(np.float64)) + SMOOTHING * overall) / (count + SMOOTHING)
    return np.column_stack([np.log1p(before), mean_rating, share, np.log1p(count), item_share])


def nine_numbers(
    samples: CtrSamples, items: IntArray, rating: npt.ArrayLike, liked: npt.ArrayLike, seed: int
) -> Float64Array:
    """(N, 9) `NINE` of every sample. Nearest are behaviours whose items were had by the same users as the target."""
    ratings = np.asarray(rating, dtype=np.float64)
    known = training_interactions(samples, len(items))
    n_items = int(items.max()) + 1
    overall = float(ratings[known].mean())
    count = np.bincount(items[known], minlength=n_items)
    mean = (np.bincount(items[known], ratings[known], minlength=n_items) + SMOOTHING * overall) / (count + SMOOTHING)
    above = ratings - mean[items]
    vectors = collaborative_vectors(samples, items, known, n_items, seed)
    numbers = [five_numbers(samples, items, rating, liked, seed)]
    for distances in (
        recent_behaviours(samples.offsets, samples.position, BEHAVIOURS),
        retrieve_behaviours(vectors, items, samples.offsets, samples.position, BEHAVIOURS),
    ):
        numbers += [_mean_of(values, samples.position, distances)[:, None] for values in (ratings, above)]
    return np.hstack(numbers)


def eleven_numbers(
    samples: CtrSamples, items: IntArray, rating: npt.ArrayLike, liked: npt.ArrayLike, seed: int
) -> tuple[Float64Array, dict[str, float]]:
    """(N, 11) `ELEVEN` of every sample; and the settings of the factor model, which validation AUC chooses."""
    ratings, likes = np.asarray(rating, dtype=np.float64), np.asarray(liked, dtype=bool)
    known = training_interactions(samples, len(items))
    between = (ratings[known & likes].min() + ratings[known & ~likes].max()) / 2
    nine = nine_numbers(samples, items, rating, liked, seed)
    latest = ratings[samples.position - 1]
    every, valid = np.arange(samples.rows("train").stop), samples.rows("valid")
    best: tuple[Float64Array, dict[str, float]] = np.empty(0), {}
    reached = -np.inf
    for settings, liking in likings(samples, items, ratings, known, between, seed):
        numbers = np.column_stack([nine, liking, latest])
        found = ctr_metrics(fit_logistic(numbers, samples.label, every)[valid], samples.label[valid])[0]
        if found > reached:
            best, reached = (numbers, settings), found
    return best


def training_interactions(samples: CtrSamples, n: int) -> npt.NDArray[np.bool_]:
    """(n,) which interactions are known at the end of the training split: its targets, and what came before them."""
    train = samples.rows("train")
    last = np.full(len(samples.offsets) - 1, -1, dtype=np.int64)
    np.maximum.at(last, samples.user[train], samples.position[train])
    users = np.repeat(np.arange(len(last)), np.diff(samples.offsets))
    return np.arange(n) <= last[users]


def collaborative_vectors(
    samples: CtrSamples, items: IntArray, known: npt.NDArray[np.bool_], n_items: int, seed: int
) -> Float32Array:
    """(I, D) L2-normalised vectors of items: a truncated SVD of who had what, each item weighted by 1 / sqrt(count).

    The inner products approximate the cosines of item-KNN. Items that nobody had have a vector of zeros, as have all if
    there is one user or one item.
    """
    from sklearn.decomposition import TruncatedSVD  # not above: loading it takes a second

    users = np.repeat(np.arange(len(samples.offsets) - 1), np.diff(samples.offsets))
    had: Any = sparse.csr_matrix(
        (np.ones(int(known.sum())), (items[known], users[known])), shape=(n_items, len(samples.offsets) - 1)
    )
    had.data[:] = 1
    weight = 1 / np.sqrt(np.maximum(had.getnnz(axis=1), 1))
    dim = min(DIM, min(had.shape) - 1)
    if not dim:
        return np.zeros((n_items, 1), dtype=np.float32)
    vectors = TruncatedSVD(dim, random_state=seed).fit_transform(sparse.diags(weight) @ had)
    return normalised(vectors.astype(np.float32))


def fit_logistic(numbers: Float64Array, label: npt.ArrayLike, rows: IntArray) -> Float64Array:
    """(N,) probabilities from a logistic regression that is fitted on these rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    model.fit(numbers[rows], np.asarray(label)[rows])
    return model.predict_proba(numbers)[:, 1]


def fit_trees(numbers: Float64Array, label: npt.ArrayLike, rows: IntArray, valid: slice, seed: int) -> Float64Array:
    """(N,) probabilities from boosted trees that are fitted on these rows; validation chooses how many trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import log_loss

    labels = np.asarray(label)
    best, reached = np.empty(0), np.inf
    model = HistGradientBoostingClassifier(learning_rate=0.05, early_stopping=False, warm_start=True, random_state=seed)
    for rounds in ROUNDS:
        model.set_params(max_iter=rounds).fit(numbers[rows], labels[rows])
        loss = log_loss(labels[valid], model.predict_proba(numbers[valid])[:, 1], labels=[False, True])
        if loss < reached:
            best, reached = model.predict_proba(numbers)[:, 1], loss
    return best


def _sums_before(values: Float64Array, samples: CtrSamples) -> Float64Array:
    """Sum of ``values`` over each sample's history."""
    running = np.concatenate([[0.0], values.cumsum()])
    return running[samples.position] - running[samples.history_start]


def _mean_of(values: Float64Array, position: IntArray, distances: Distances) -> Float64Array:
    """(N,) mean of the values of each sample's behaviours, which lie ``distances`` before its target."""
    means = np.empty(len(position))
    for start in range(0, len(position), _CHUNK):
        rows = slice(start, start + _CHUNK)
        away = distances[rows].astype(np.int64)
        kept = away > 0
        means[rows] = (values[position[rows, None] - away] * kept).sum(1) / np.maximum(kept.sum(1), 1)
    return means
