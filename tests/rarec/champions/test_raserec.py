import numpy as np
import pandas as pd
import pytest
import torch
from clean_tables import clean_table

from rarec.champions.raserec import ServedRecommender, unremembered
from rarec.metrics.ranking import full_ranking
from rarec.raserec.encoders import build_encoder
from rarec.raserec.recommender import Recommender
from rarec.raserec.retrieval_module import RetrievalAugmentedModule
from rarec.raserec.settings import EncoderSettings, FinetuneSettings
from rarec.retrieval.memory import MemoryBank
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits

ITEMS = [f"i{number}" for number in range(9)]  # what the encoder knows; `new` it does not


def random_rows(seed, users=7, start=0):
    generator = np.random.default_rng(seed)
    return [
        (f"u{user}", str(generator.choice(ITEMS)), start + int(time))
        for user in range(users)
        for time in np.sort(generator.choice(100, generator.integers(2, 7), replace=False))
    ]


BEFORE = clean_table(random_rows(1))
# Later: more of the same users, people who come before the others in the order of ids, items that are not known.
LATER = [*random_rows(2, start=100), ("a", "i3", 120), ("a", "new", 121), ("a", "i4", 122), ("u1", "new", 130)]


def make_served(index="flat", **settings):
    torch.manual_seed(0)
    served = ServedRecommender.__new__(ServedRecommender)
    served.item_ids, served.user_ids = pd.Series(ITEMS), BEFORE["user_id"].drop_duplicates().reset_index(drop=True)
    encoder = build_encoder(
        9, EncoderSettings(dim=8, inner_dim=8, heads=1, layers=1, max_length=4), DropoutBits()
    ).eval()
    served.recommender = None
    translation = served.translate(BEFORE, clock=True)
    served.sequences = translation.sequences
    prefixes = translation.proper_prefixes()
    vectors = encoder.encode(served.sequences, prefixes).numpy()
    bank = MemoryBank.build(served.sequences, prefixes, vectors, "encoder", MemorySettings(index=index, **settings))
    module = RetrievalAugmentedModule(
        8, FinetuneSettings(memories=3, heads=1, inner_dim=8, beta=0.5), DropoutBits()
    ).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    served.recommender = Recommender(encoder, bank, module)
    return served


def memories(bank):
    """Every memory with its representation, in the order of prefixes."""
    order = np.argsort(bank.prefixes)
    names = ("users", "prefixes", "targets", "known_at")
    return {name: getattr(bank, name)[order].tolist() for name in names}, bank.representations[order]


def as_built_anew(served, translation, prefixes):
    vectors = served.recommender.encoder.encode(translation.sequences, prefixes).numpy()
    return MemoryBank.build(translation.sequences, prefixes, vectors, "encoder", MemorySettings())


@pytest.mark.parametrize("index", ["flat", "ivf"])
@pytest.mark.parametrize("late", [[], [("u2", "i0", 3), ("u4", "i8", -1)]])
def test_refreshed_bank_is_that_built_anew(index, late, monkeypatch):
    served = make_served(index, **({"ivf_lists": 2, "ivf_probes": 2} if index == "ivf" else {}))
    today = clean_table([*BEFORE[["user_id", "item_id", "timestamp"]].itertuples(index=False), *LATER, *late])
    translation = served.translate(today, clock=True)
    before = memories(served.recommender.bank)
    encoded = []
    encode = served.recommender.encoder.encode
    monkeypatch.setattr(served.recommender.encoder, "encode", lambda s, p: encoded.extend(p) or encode(s, p))
    refreshed = served.refreshed(translation)
    n_encoded = len(encoded)
    assert len(unremembered(served.carried(translation), translation)) == n_encoded
    names, vectors = memories(refreshed)
    expected, expected_vectors = memories(as_built_anew(served, translation, translation.proper_prefixes()))
    assert names == expected
    np.testing.assert_allclose(vectors, expected_vectors, atol=1e-6)
    assert refreshed.index.ntotal == len(refreshed)
    if not late:
        assert n_encoded == len(refreshed) - len(served.recommender.bank)
    else:
        assert len(refreshed) - len(served.recommender.bank) < n_encoded < len(refreshed)
    assert memories(served.recommender.bank)[0] == before[0]  # the served one stays as it was
    # The index answers for the same memories, in its own order.
    found = refreshed.index.search(refreshed.representations[:5], 1)[0]
    np.testing.assert_allclose(found[:, 0], np.linalg.norm(refreshed.representations[:5], axis=1), atol=1e-5)


def test_refresh_until_a_time_takes_nothing_younger():
    served = make_served()
    translation = served.translate(
        clean_table([*BEFORE[["user_id", "item_id", "timestamp"]].itertuples(index=False), *LATER]), clock=True
    )
    bank = served.refreshed(translation, until=121)
    assert (bank.known_at < 121).all()
    names, _ = memories(bank)
    expected, _ = memories(as_built_anew(served, translation, translation.proper_prefixes(until=121)))
    assert names == expected
    assert len(served.carried(translation)) < len(bank) < len(served.refreshed(translation))


def test_what_is_unknown_is_left_out_of_the_translation():
    served = make_served()
    today = clean_table([("a", "i1", 9), ("u1", "i3", 1), ("u1", "new", 2), ("b", "new", 3), ("u1", "i0", 4)])
    today = today[today["timestamp"] < 9]  # user numbers have a gap
    translation = served.translate(today, clock=True)
    assert translation.user_ids.tolist() == ["b", "u1"]
    assert translation.positions.tolist() == [-1, 0, -1, 1]
    assert translation.sequences.offsets.tolist() == [0, 0, 2]
    assert translation.sequences.items.tolist() == [3, 0]
    assert translation.proper_prefixes().tolist() == [0]


def test_ranks_equal_a_plain_loop_over_the_events():
    served = make_served()
    today = clean_table([*BEFORE[["user_id", "item_id", "timestamp"]].itertuples(index=False), *LATER])
    translation = served.translate(today, clock=True)
    bank = served.refreshed(translation)
    events = np.flatnonzero(today["timestamp"] >= 100)
    ranks = served.ranks(translation, events, bank)
    encoder, module = served.recommender.encoder, served.recommender.module
    expected = []
    for row in events:
        event = today.iloc[row]
        own = today.iloc[:row].query("user_id == @event.user_id")
        known = own[own["item_id"].isin(ITEMS)]
        if event["item_id"] not in ITEMS or known.empty:
            expected.append(np.inf)
            continue
        # All that is known before the event, and of this user only what is behind them.
        past = today[(today["timestamp"] < event["timestamp"])].sort_values(["user_id", "timestamp"], kind="stable")
        past = clean_table(past[["user_id", "item_id", "timestamp"]].itertuples(index=False))
        then = served.translate(past, clock=True)
        last = int(then.sequences.offsets[then.user_ids.tolist().index(event["user_id"]) + 1]) - 1
        short = as_built_anew(served, then, then.proper_prefixes())
        recommender = Recommender(encoder, short, module)
        _, vector = recommender.represent(then.sequences, np.array([last]))
        seen = torch.tensor([ITEMS.index(item) for item in known["item_id"]])
        target = torch.tensor([ITEMS.index(event["item_id"])])
        result = full_ranking(vector, recommender.item_embeddings, target, torch.tensor([0, len(seen)]), seen)
        expected.append(float(result.rank_masked[0]))
    assert np.isinf(expected).sum() == 3  # two of item `new`, one without a known past
    np.testing.assert_array_equal(ranks, expected)


def test_a_stale_bank_answers_otherwise_than_a_fresh_one():
    served = make_served()
    translation = served.translate(
        clean_table([*BEFORE[["user_id", "item_id", "timestamp"]].itertuples(index=False), *LATER]), clock=True
    )
    events = np.flatnonzero(translation.positions >= 0)[-12:]
    stale, fresh = (
        served.ranks(translation, events, bank) for bank in (served.carried(translation), served.refreshed(translation))
    )
    assert not np.array_equal(stale, fresh)
