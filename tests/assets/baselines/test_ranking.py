"""What both stages have to beat, as the asset keeps it and the report reads it."""

import numpy as np
import pytest
from plant import metadata

from assets.baselines.ranking import rankings_in
from rarec.baselines.ranking import rank_by_popularity
from rarec.data.sequences import UserSequences


@pytest.mark.parametrize("split", ["valid", "test"])
def test_ranks_are_kept_by_split_and_model(plant, first, split):
    sequences = UserSequences.load(plant.artifact(first, "user_sequences").path)
    kept = rankings_in(plant.artifact(first, "ranking_baselines"), split)
    assert list(kept) == [
        "popularity", "item-KNN", "EASE", "sequential ridge", "transitions", "transitions + text",
    ]  # fmt: skip
    known = sequences if split == "valid" else sequences.before_test()
    expected = rank_by_popularity(known, sequences.prefixes(split))
    assert kept["popularity"].rank.tolist() == expected.rank.tolist()
    assert kept["popularity"].rank_masked.tolist() == expected.rank_masked.tolist()
    assert (kept["item-KNN"].rank_masked <= kept["item-KNN"].rank).all()


@pytest.mark.parametrize(("split", "known"), [("valid", 0), ("test", 1)])
def test_popularity_ranks_by_interactions_before_the_split(plant, first, split, known):
    """The slow way: an item's rank is one more than the number of items with more interactions, ties by halves.

    The test split knows one more of each user who is evaluated, and all users of the demo are.
    """
    sequences = UserSequences.load(plant.artifact(first, "user_sequences").path)
    counts = np.zeros(sequences.n_items)
    for start, end in zip(sequences.offsets[:-1], sequences.train_ends, strict=True):
        np.add.at(counts, sequences.items[start : end + known], 1)
    ranks = rankings_in(plant.artifact(first, "ranking_baselines"), split)["popularity"].rank.numpy()
    for rank, prefix in zip(ranks, sequences.prefixes(split), strict=True):
        count = counts[sequences.items[prefix + 1]]
        assert (counts > count).sum() < rank <= (counts >= count).sum()


def test_figures_are_those_of_the_kept_ranks(plant, first):
    told = metadata(first)["ranking_baselines"]
    for model, ranking in rankings_in(plant.artifact(first, "ranking_baselines"), "test").items():
        for protocol, ranks in (("unmasked", ranking.rank), ("masked", ranking.rank_masked)):
            assert told[f"test {model} {protocol} HR@10"] == pytest.approx((ranks <= 10).float().mean())
    assert "| transitions | decay |" in told["settings"]
