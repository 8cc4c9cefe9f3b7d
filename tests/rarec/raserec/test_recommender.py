import numpy as np
import pytest
import torch
from callers_data import unchanged
from raserec_toys import sequences_of

from rarec.raserec.encoders import build_encoder
from rarec.raserec.recommender import NOW, Recommender, recommend_histories, recommend_users
from rarec.raserec.retrieval_module import RetrievalAugmentedModule
from rarec.raserec.settings import EncoderSettings, FinetuneSettings
from rarec.retrieval.memory import MemoryBank
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits

ITEMS = [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [5, 6, 7, 5, 6], [2, 3, 4, 1, 7]]
TIMES = [[10, 20, 30, 40, 50], [11, 21, 31, 41, 51], [12, 22, 32, 42, 52], [100, 200, 300, 400, 500]]


def make_recommender(time_cut=False):
    torch.manual_seed(0)
    sequences = sequences_of(ITEMS, 8, TIMES)
    encoder = build_encoder(8, EncoderSettings(dim=8, inner_dim=8, heads=1, layers=1), DropoutBits()).eval()
    prefixes = sequences.prefixes("train")
    vectors = encoder.encode(sequences, prefixes).numpy()
    bank = MemoryBank.build(sequences, prefixes, vectors, "encoder", MemorySettings(time_cut=time_cut))
    settings = FinetuneSettings(memories=3, heads=1, inner_dim=8, beta=0.5)
    module = RetrievalAugmentedModule(8, settings, DropoutBits()).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return sequences, Recommender(encoder, bank, module)


def test_people_outside_the_data_are_served_from_memory_with_a_time_cut_too():
    _, with_cut = make_recommender(time_cut=True)
    _, without = make_recommender()
    for (items, scores), (other_items, other_scores) in zip(
        recommend_histories(with_cut, [[0, 1], [5]], 3), recommend_histories(without, [[0, 1], [5]], 3), strict=True
    ):
        np.testing.assert_array_equal(items, other_items)
        np.testing.assert_allclose(scores, other_scores)


def test_a_question_asked_now_may_use_what_became_known_since():
    sequences, recommender = make_recommender(time_cut=True)
    first = sequences.offsets[:1]  # user 0 after one item, at time 10: nobody's next item was known then
    own, then = recommender.represent(sequences, first)
    _, now = recommender.represent(sequences, first, asked_at=NOW)
    torch.testing.assert_close(then, own)
    assert not torch.allclose(now, own)


def test_seen_items_and_empty_histories():
    _, recommender = make_recommender()
    (items, scores), (nothing, no_scores) = recommend_histories(recommender, [[3, 1], []], 8)
    assert sorted(items) == [0, 2, 4, 5, 6, 7]
    assert (np.diff(scores) <= 0).all()
    assert len(nothing) == len(no_scores) == 0
    ((everything, _),) = recommend_histories(recommender, [[3, 1]], 8, exclude_seen=False)
    assert sorted(everything) == list(range(8))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_everybody_gets_a_list_and_who_did_nothing_known_the_most_popular(exclude_seen):
    """Items 1 to 4 were had three times, 0 and 5 to 7 twice."""
    sequences, recommender = make_recommender()
    more = sequences_of([*ITEMS, [], []], 8, [*TIMES, [], []])
    with unchanged(more, recommender.bank.representations):
        lists = recommend_users(recommender, more, 10, exclude_seen)
    assert lists.by_popularity.tolist() == [False] * 4 + [True] * 2
    assert lists.items[4:].tolist() == [[1, 2, 3, 4, 0, 5, 6, 7, -1, -1]] * 2
    assert np.isnan(lists.scores[4:]).all()
    alone = recommend_users(recommender, sequences, 10, exclude_seen)
    assert not alone.by_popularity.any()
    np.testing.assert_array_equal(lists.items[:4], alone.items)
    np.testing.assert_array_equal(lists.scores[:4], alone.scores)
    assert (alone.items >= 0).sum(1).tolist() == ([3, 3, 5, 3] if exclude_seen else [8] * 4)
    short = recommend_users(recommender, more, 2, exclude_seen)
    assert short.items.tolist() == lists.items[:, :2].tolist()
    few = recommend_users(recommender, sequences_of([ITEMS[0], []], 8, [TIMES[0], []]), 10, exclude_seen)
    assert few.items[1].tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]  # what nobody has is not popular


def test_remembering_leaves_the_bank_of_others_as_it_was():
    sequences, recommender = make_recommender()
    bank = recommender.bank
    before = len(bank)
    recommender.remember(sequences, sequences.prefixes("valid"))
    assert len(bank) == bank.index.ntotal == before
    assert len(recommender.bank) == recommender.bank.index.ntotal == before + 4
