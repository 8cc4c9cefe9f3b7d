"""The histories in prompts, for the CTR report: how varied they are, and how similar to the target."""

import pandas as pd

from rarec.metrics.histories import distinct_genres, genre_matrix, mean_similarity
from rarec.rella.prompt_source import PromptSource
from rarec.reports.ctr.records import Heterogeneity, Similarity
from rarec.retrieval.subr import recent_behaviours, retrieve_behaviours
from rarec.types import Float32Array, IntArray

STUDIED = 5000  # test samples whose histories are examined
SIZES = (5, 10, 15, 20, 25, 30)


def heterogeneity(
    source: PromptSource, vectors: Float32Array, genres: pd.Series, test: IntArray
) -> list[Heterogeneity]:
    """Distinct genres among the K behaviours kept, by K; empty if the catalogue has no genres.

    Args:
        vectors: (I, D) L2-normalised item vectors.
        genres: (I,) from the catalogue.
        test: Test samples.
    """
    if genres.isna().all():
        return []
    matrix = genre_matrix(genres)
    offsets, items = source.samples.offsets, source.items
    position = source.samples.position[_studied(test)]
    found = []
    for k in SIZES:
        kept = {
            "recent": recent_behaviours(offsets, position, k),
            "retrieved": retrieve_behaviours(vectors, items, offsets, position, k),
        }
        for history, distances in kept.items():
            genres_kept = distinct_genres(matrix, items, position, distances)
            found.append(Heterogeneity(history=history, k=k, distinct_genres=genres_kept))  # type: ignore[arg-type]
    return found


def similarity(source: PromptSource, vectors: Float32Array, test: IntArray) -> list[Similarity]:
    """Mean cosine between the target and the behaviours kept, by history.

    Args:
        vectors: (I, D) L2-normalised item vectors.
        test: Test samples.
    """
    shown = _studied(test)
    samples = source.samples
    position = samples.position[shown]
    histories = {
        "retrieved": source.retrieved[shown],
        "recent": source.recent[shown],
        "random": source.randomised(seed=0).retrieved[shown],
    }
    return [
        Similarity(history=name, cosine=mean_similarity(vectors, source.items, position, distances))  # type: ignore[arg-type]
        for name, distances in histories.items()
    ]


def _studied(test: IntArray) -> IntArray:
    """About `STUDIED` test samples, evenly spread over time."""
    return test[:: max(1, len(test) // STUDIED)]
