import math

import numpy as np
import pytest

from rarec.errors import InputError
from rarec.metrics.groups import activity_groups, metrics_by_group, popularity_groups


def labels_of(groups):
    return [groups.labels[number] if number >= 0 else None for number in groups.index]


def test_popularity_bounds_by_hand():
    # Total 20: the head ends with the item that reaches 4, the tail begins where 16 are reached.
    groups = popularity_groups([1, 3, 0, 6, 2, 1, 5, 2])
    # Sorted: item 3 (0 before), 6 (6), 1 (11), 4 (14), 7 (16), 0 (18), 5 (19), 2 (no interactions).
    assert labels_of(groups) == ["tail", "mid", "tail", "head", "mid", "tail", "mid", "tail"]
    assert groups.descriptions == (
        "the first 20% of training interactions (1 items)",
        "the next 60% of training interactions (3 items)",
        "the last 20%, and items without any (4 items)",
    )


def test_popularity_ties_go_by_item_index():
    assert labels_of(popularity_groups([1] * 10)) == ["head"] * 2 + ["mid"] * 6 + ["tail"] * 2


@pytest.mark.parametrize("size", [35, 1000])
def test_popularity_bounds_are_exact_for_any_total(size):
    groups = popularity_groups([1] * size)
    assert np.bincount(groups.index).tolist() == [size // 5, 3 * size // 5, size // 5]


def test_items_never_seen_in_training_are_tail():
    assert labels_of(popularity_groups([0, 0, 7])) == ["tail", "tail", "head"]
    assert labels_of(popularity_groups([0, 0])) == ["tail", "tail"]
    assert labels_of(popularity_groups([])) == []


def test_groups_of_users_by_their_target():
    groups = popularity_groups([7, 2, 0]).of([2, 0, -1, 2])
    assert labels_of(groups) == ["tail", "head", None, "tail"]
    with pytest.raises(InputError, match="between -1 and 2"):
        popularity_groups([7, 2, 0]).of([3])


def test_activity_tertiles_keep_equal_lengths_together():
    groups = activity_groups([3, 9, 4, 4, 4, 20])
    assert labels_of(groups) == ["low", "high", "low", "low", "low", "high"]
    assert groups.descriptions == (
        "at most 4 training interactions",
        "nobody: the tertile bounds coincide",
        "more than 4 training interactions",
    )
    assert labels_of(activity_groups([1, 2, 3, 4, 5, 6])) == ["low"] * 2 + ["medium"] * 2 + ["high"] * 2
    assert activity_groups([]).index.shape == (0,)


def test_metrics_by_group_with_counts_and_an_empty_group():
    rank = np.array([1, 2, 30, -1, 5])
    groups = activity_groups([4, 9, 4, 4, 4])
    low, medium, high = metrics_by_group(rank, groups, ks=(2, 10))
    assert (low.group, low.n_users) == ("low", 3)
    assert low.metrics["HR@2"] == pytest.approx(1 / 3)
    assert low.metrics["MRR@10"] == pytest.approx((1 + 0 + 1 / 5) / 3)
    assert (medium.n_users, high.n_users) == (0, 1)
    assert all(math.isnan(value) for value in medium.metrics.values())
    assert high.metrics["NDCG@2"] == pytest.approx(1 / math.log2(3))


def test_negative_counts_and_unequal_lengths_are_errors():
    with pytest.raises(InputError, match=r"training_counts has a negative number \(-1\)"):
        popularity_groups([3, -1])
    with pytest.raises(InputError, match="There are 2 ranks, but 3 users have a group"):
        metrics_by_group([1, 2], activity_groups([1, 2, 3]))
