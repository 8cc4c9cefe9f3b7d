"""Transitions, similar texts and EASE, each against its definition."""

import numpy as np
import pytest
from raserec_toys import random_sequences, sequences_of

from rarec.baselines import ease as ease_module
from rarec.baselines import item_texts as texts_module
from rarec.baselines.ease import Ease, EaseSettings, choose_ease
from rarec.baselines.item_texts import TextSettings, TransitionsAndTexts, choose_texts, text_similarity
from rarec.baselines.ranking import RankingBaselineSettings, ranking_baselines
from rarec.baselines.transitions import LONGEST, Transitions, TransitionSettings, choose, choose_transitions
from rarec.metrics.ranking import ranking_table

ITEMS = 30
ODD = TransitionSettings(window=3, distance_power=1.5, backward=0.3, source_power=0.25, target_power=0.45, decay=0.7)


@pytest.fixture(scope="module")
def sequences():
    """Items repeat within users; some users are too short to be split, one is longer than what counts."""
    return random_sequences([6, 1, 40, 9, 3, 0, 22, 4, 12, 15, 2, 8], n_items=ITEMS, seed=4)


def parts(sequences):
    ends = zip(sequences.offsets[:-1], sequences.train_ends, strict=True)
    return [sequences.items[start:end].tolist() for start, end in ends]


def plain_transitions(sequences, settings):
    """T(a, b), pair by pair."""
    found = np.zeros((ITEMS, ITEMS))
    for items in parts(sequences):
        for first, a in enumerate(items):
            for distance, b in enumerate(items[first + 1 : first + 1 + settings.window], 1):
                if a != b:
                    found[a, b] += distance**-settings.distance_power
    return found + settings.backward * found.T


def plain_scores(sequences, settings, prefix):
    counts = np.maximum(sequences.train_counts(), 1)
    matrix = plain_transitions(sequences, settings)
    history = sequences.items[sequences.offsets[sequences.user_of[prefix]] : prefix + 1][-LONGEST:]
    return sum(
        settings.decay ** (len(history) - 1 - place)
        * counts[item] ** -settings.source_power
        * matrix[item]
        * counts**-settings.target_power
        for place, item in enumerate(history)
    )


def ranks_of(scores, sequences, prefixes):
    """Rank by descending score, then item; with seen items as candidates."""
    found = []
    for own, target in zip(scores, sequences.next_items(prefixes), strict=True):
        order = sorted(range(len(own)), key=lambda item: (-np.float32(own[item]), item))
        found.append(order.index(target) + 1)
    return found


@pytest.mark.parametrize("settings", [TransitionSettings(), ODD])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_transitions_rank_by_their_formula(sequences, settings, split):
    prefixes = sequences.prefixes(split)
    scores = np.array([plain_scores(sequences, settings, prefix) for prefix in prefixes])
    transitions = Transitions.of(sequences, settings)
    found = (transitions.histories(sequences, prefixes) @ transitions.matrix).toarray()
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-7)
    ranking = transitions.rank(sequences, prefixes, block=2)
    assert ranking.rank.tolist() == ranks_of(found, sequences, prefixes)
    assert not np.array_equal(ranking.rank, ranking.rank_masked)


def test_held_out_items_are_no_part_of_what_is_counted(sequences):
    changed = sequences.items.copy()
    for user in sequences.evaluated_users():
        changed[sequences.offsets[user + 1] - 2 : sequences.offsets[user + 1]] = 0
    other = type(sequences)(sequences.offsets, changed, sequences.timestamps, sequences.n_items)
    assert (Transitions.of(sequences, ODD).matrix != Transitions.of(other, ODD).matrix).nnz == 0


def test_texts_are_similar_by_their_words():
    texts = ["red tea pot", "blue tea pot", "garden chair", "chair of wood", "", "red tea pot"]
    similarity = text_similarity(texts).toarray()
    assert similarity[0, 5] == pytest.approx(1)
    assert similarity[0, 1] > 0.3
    assert similarity[0, 2] == similarity[0, 0] == 0
    assert not similarity[4].any()
    np.testing.assert_allclose(similarity, similarity.T, rtol=1e-6)


def test_of_many_texts_only_the_nearest_are_kept(monkeypatch):
    monkeypatch.setattr("rarec.baselines.item_texts.NEIGHBOURS", 2)
    monkeypatch.setattr("rarec.baselines.item_texts.BLOCK", 3)
    texts = [f"tea {' '.join(f'w{n}' for n in range(size))}" for size in range(7)]
    near = text_similarity(texts)
    monkeypatch.setattr("rarec.baselines.item_texts.NEIGHBOURS", 99)
    every = text_similarity(texts).toarray()
    for row, own in enumerate(near.toarray()):
        assert np.flatnonzero(own).tolist() == sorted(np.argsort(-every[row])[:2].tolist())
        np.testing.assert_allclose(own[own > 0], every[row][own > 0])


def test_no_more_neighbours_are_kept_where_many_are_equal(monkeypatch):
    monkeypatch.setattr(texts_module, "NEIGHBOURS", 3)
    near = text_similarity(["same"] * 8 + ["other"] * 4).toarray()
    assert ((near > 0).sum(1) <= 3).all()
    assert (near[:8, 8:] == 0).all()


def test_texts_add_to_transitions(sequences):
    texts = [f"w{item % 5} x{item % 3}" for item in range(ITEMS)]
    prefixes = sequences.prefixes("test")
    transitions, similarity = Transitions.of(sequences, ODD), text_similarity(texts)
    settings = TextSettings(weight=0.5, decay=0.6)
    scores = []
    for prefix in prefixes:
        history = sequences.items[sequences.offsets[sequences.user_of[prefix]] : prefix + 1][-LONGEST:]
        of_texts = sum(
            settings.weight * settings.decay ** (len(history) - 1 - place) * similarity.toarray()[item]
            for place, item in enumerate(history)
        )
        scores.append(plain_scores(sequences, ODD, prefix) + of_texts)
    ranking = TransitionsAndTexts(transitions, similarity, settings).rank(sequences, prefixes)
    assert ranking.rank.tolist() == ranks_of(np.array(scores), sequences, prefixes)


@pytest.mark.parametrize("l2", [1.0, 30.0])
def test_ease_solves_its_problem(sequences, l2):
    """Column by column: ridge regression of an item on all others."""
    had = np.zeros((sequences.n_users, ITEMS))
    for user, items in enumerate(parts(sequences)):
        had[user, items] = 1
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        x = had[:, others]
        expected[others, item] = np.linalg.solve(x.T @ x + l2 * np.eye(ITEMS - 1), x.T @ had[:, item])
    model = Ease.of(sequences, EaseSettings(l2))
    np.testing.assert_allclose(model.weights, expected, atol=2e-5)
    prefixes = sequences.prefixes("test")
    histories = np.zeros((len(prefixes), ITEMS))
    for row, prefix in enumerate(prefixes):
        histories[row, sequences.items[sequences.offsets[sequences.user_of[prefix]] : prefix + 1]] = 1
    found = histories.astype(np.float32) @ model.weights
    assert model.rank(sequences, prefixes).rank.tolist() == ranks_of(found, sequences, prefixes)


def test_settings_are_chosen_one_after_the_other_and_only_if_better():
    tried = []

    def figure(settings):
        tried.append(settings)
        return -abs(settings.decay - 0.4) - abs(settings.window - 5)

    best = choose(TransitionSettings(), {"window": (5, 10, 50), "decay": (0.2, 0.4)}, figure)
    assert (best.window, best.decay) == (5, 0.4)
    assert best.backward == TransitionSettings().backward
    assert len(tried) == len(set(tried)) == 1 + (2 + 2) + 2


def test_what_is_chosen_is_at_least_as_good_as_the_defaults(sequences, monkeypatch):
    monkeypatch.setattr(ease_module, "L2", (1.0, 10.0))
    valid = sequences.prefixes("valid")

    def figure(model):
        return ranking_table(model.rank(sequences, valid).rank)["NDCG@10"]

    transitions = choose_transitions(sequences, valid)
    assert figure(transitions) >= figure(Transitions.of(sequences, TransitionSettings()))
    similarity = text_similarity([f"w{item % 5}" for item in range(ITEMS)])
    texts = choose_texts(transitions, similarity, sequences, valid)
    assert figure(texts) >= figure(TransitionsAndTexts(transitions, similarity, TextSettings()))
    ease = [figure(Ease.of(sequences, EaseSettings(l2))) for l2 in (1.0, 10.0)]
    assert figure(Ease.of(sequences, choose_ease(sequences, valid))) == max(ease)


def test_settings_are_chosen_on_training_parts_and_the_test_knows_the_validation_items():
    """On validation, 0 was followed by 1 twice; the validation items of others say that 0 is followed by 2."""
    histories = [[3, 0, 1, 3, 4], [4, 0, 1, 4, 3], [1, 3, 0, 2, 0], [1, 4, 0, 2, 4], [3, 4, 0, 2, 3], [4, 3, 1, 0, 2]]
    sequences = sequences_of(histories, 5)
    *_, transitions = ranking_baselines(sequences, None, RankingBaselineSettings())
    own = TransitionSettings(**transitions.chosen)
    before, known = Transitions.of(sequences, own), Transitions.of(sequences.before_test(), own)
    assert before.matrix[0, 2] == 0 < before.matrix[0, 1]
    assert known.matrix[0, 2] > known.matrix[0, 1]
    for split, model, given in (("valid", before, sequences), ("test", known, sequences.before_test())):
        expected = model.rank(given, sequences.prefixes(split))
        assert transitions.rankings[split].rank.tolist() == expected.rank.tolist()
    for split in ("valid", "test"):
        assert np.array_equal(sequences.before_test().prefixes(split), sequences.prefixes(split))


def test_large_catalogues_and_items_without_texts_leave_methods_out(sequences):
    texts = ["a"] * ITEMS

    def names(words, **settings):
        return [one.name for one in ranking_baselines(sequences, words, RankingBaselineSettings(**settings))]

    assert names(texts) == [
        "popularity", "item-KNN", "EASE", "sequential ridge", "transitions", "transitions + text",
    ]  # fmt: skip
    assert names(None, ease_items=ITEMS - 1, ridge_items=ITEMS - 1) == ["popularity", "item-KNN", "transitions"]
