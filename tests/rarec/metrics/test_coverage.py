import math

import pytest
import torch

from rarec.errors import InputError
from rarec.metrics.coverage import recommendation_stats


def test_by_hand():
    lists = torch.tensor([[0, 1, 3], [0, -1, -1]])
    counts = [10, 4, 4, 0]
    stats = recommendation_stats(lists, counts, n=2)  # recommended: 0, 1, 0
    assert stats.coverage == 2 / 4
    assert stats.mean_training_count == pytest.approx((10 + 4 + 10) / 3)
    # Percentiles: item 3 has 1/2 of 4 items below it, items 1 and 2 have 1 + 2/2, item 0 has 3 + 1/2.
    assert stats.mean_popularity_percentile == pytest.approx((87.5 + 50 + 87.5) / 3)
    assert recommendation_stats(lists, counts, n=3).coverage == 3 / 4


def test_recommending_everything_equally_gives_percentile_50():
    stats = recommendation_stats([[0, 1, 2, 3, 4]], [9, 9, 1, 0, 4], n=5)
    assert (stats.coverage, stats.mean_popularity_percentile) == (1, pytest.approx(50))


def test_nothing_recommended_is_nan_but_covers_nothing():
    stats = recommendation_stats([[-1]], [3, 4], n=1)
    assert stats.coverage == 0
    assert math.isnan(stats.mean_training_count)
    assert math.isnan(stats.mean_popularity_percentile)


def test_short_lists_and_unknown_items_are_errors():
    with pytest.raises(InputError, match="fewer than 3 places"):
        recommendation_stats([[0, 1]], [1, 1], n=3)
    with pytest.raises(InputError, match="there are only 2 items"):
        recommendation_stats([[0, 2]], [1, 1], n=2)
    with pytest.raises(InputError, match="there are only 2 items"):
        recommendation_stats([[-2, 1]], [1, 1], n=2)
