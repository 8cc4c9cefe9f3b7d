"""The yardstick of the click-through task: a logistic regression on five features known before the event."""

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rarec.data.ctr import CtrSamples
from rarec.types import Float64Array, IntArray

SMOOTHING = 10.0  # pseudo-counts at the overall share of likes, added for every user and item
FEATURES = ("history length", "history mean rating", "history share of likes", "item count", "item share of likes")


def features_of(samples: CtrSamples, item_index: IntArray, rating: npt.ArrayLike, liked: npt.ArrayLike) -> Float64Array:
    """(N, 5) `FEATURES` of every sample; counts are logarithms.

    The item's two features are computed on the training split, without the sample itself.

    Args:
        item_index, rating, liked: (M,) of each interaction, sorted by (user, time).
    """
    likes, ratings = np.asarray(liked, dtype=np.float64), np.asarray(rating, dtype=np.float64)
    train = samples.rows("train")
    overall = float(samples.label[train].mean())
    before = samples.position - samples.history_start
    mean_rating = _sums_before(ratings, samples) / before
    share = (_sums_before(likes, samples) + SMOOTHING * overall) / (before + SMOOTHING)

    items = item_index[samples.position]
    n_items = int(item_index.max()) + 1
    own = np.zeros(len(samples))
    own[train] = 1
    count = np.bincount(items[train], minlength=n_items)[items] - own
    liked_count = np.bincount(items[train], samples.label[train], minlength=n_items)[items] - own * samples.label
    item_share = (liked_count + SMOOTHING * overall) / (count + SMOOTHING)
    return np.column_stack([np.log1p(before), mean_rating, share, np.log1p(count), item_share])


def fit_and_predict(features: Float64Array, samples: CtrSamples) -> Float64Array:
    """(N,) probabilities from a logistic regression that is fitted on the training split."""
    train = samples.rows("train")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    model.fit(features[train], samples.label[train])
    return model.predict_proba(features)[:, 1]


def _sums_before(values: Float64Array, samples: CtrSamples) -> Float64Array:
    """Sum of ``values`` over each sample's history."""
    running = np.concatenate([[0.0], values.cumsum()])
    return running[samples.position] - running[samples.history_start]
