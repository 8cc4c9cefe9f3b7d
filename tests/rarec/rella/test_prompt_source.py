import numpy as np
import pytest
from callers_data import unchanged
from rella_toys import BEHAVIOURS, TEMPLATE, toy_data

from rarec.data.ctr import CtrSamples
from rarec.data.templates import item_texts, profile_texts
from rarec.rella.prompt_source import PromptSource, RandomHistories

DATA = toy_data()
SOURCE = DATA.source
SAMPLES = np.arange(len(SOURCE.samples))


def lines(rows):
    return [SOURCE.parts.text(row).splitlines() for row in rows]


def test_twin_prompts_differ_in_their_history_only():
    recent, retrieved = (lines(SOURCE.rows(SAMPLES, which)) for which in (False, True))
    questions = TEMPLATE.question.count("\n") + 1
    differing = 0
    for one, other in zip(recent, retrieved, strict=True):
        assert len(one) == len(other)
        start = one.index(TEMPLATE.heading.strip()) + 1
        assert one[:start] == other[:start]
        assert one[-questions:] == other[-questions:]
        assert len(one) - start - questions <= BEHAVIOURS
        differing += one[start:-questions] != other[start:-questions]
    assert differing > len(SAMPLES) / 2


@pytest.mark.parametrize("retrieved", [False, True])
def test_prompts_by_a_plain_loop(retrieved):
    """Profile, heading, the kept behaviours as they were rated, and the target: all from the tables."""
    names, profiles = item_texts(DATA.items, TEMPLATE.item), profile_texts(DATA.users, TEMPLATE)
    with unchanged(SOURCE.samples.position, SOURCE.items, SOURCE.recent, SOURCE.retrieved):
        rows = SOURCE.rows(SAMPLES, retrieved)
    for sample, row in zip(SAMPLES, rows, strict=True):
        position = SOURCE.samples.position[sample]
        user = max(u for u, first in enumerate(SOURCE.samples.offsets[:-1]) if first <= position)
        history = range(SOURCE.samples.offsets[user], position)
        if retrieved:
            cosine = DATA.vectors[SOURCE.items[history]] @ DATA.vectors[SOURCE.items[position]]
            order = sorted(range(len(history)), key=lambda n, c=cosine: (-round(float(c[n]), 6), -n))
            history = [history[n] for n in sorted(order[:BEHAVIOURS])]
        else:
            history = history[-BEHAVIOURS:]
        expected = profiles[user] + TEMPLATE.heading
        expected += "".join(f"{names[SOURCE.items[p]]}: {DATA.rating[p]:g}\n" for p in history)
        assert SOURCE.parts.text(row) == expected + TEMPLATE.question.format(item=names[SOURCE.items[position]])
        assert SOURCE.samples.label[sample] == (DATA.rating[position] >= 4)


def test_one_flag_a_sample_chooses_its_history():
    order = np.random.default_rng(0).permutation(SAMPLES)
    flags = np.random.default_rng(1).random(len(order)) < 0.5
    got = SOURCE.rows(order, flags)
    for row, sample, flag in zip(got, order, flags, strict=True):
        assert np.array_equal(row, SOURCE.rows(np.array([sample]), bool(flag))[0])


def test_it_comes_back_from_the_artifacts(tmp_path):
    folders = DATA.save(tmp_path, DATA.model())
    names = ("interactions", "ctr_samples", "textual_samples", "retrieval_enhanced_samples")
    back = PromptSource.load(**{name: folders[name] for name in names})
    assert isinstance(back.recent, np.memmap)
    for which in (False, True):
        assert np.array_equal(back.rows(SAMPLES, which), SOURCE.rows(SAMPLES, which))
    assert np.array_equal(back.user(SAMPLES), SOURCE.samples.user)
    assert back.parts.texts == SOURCE.parts.texts


def test_random_histories_are_drawn_once_and_told_in_order():
    before = np.array([2, 6, 0, 50, 7] * 40)
    samples = CtrSamples(
        np.concatenate([[0], (before + 1).cumsum()]), (before + 1).cumsum() - 1, np.ones(200, bool),
        np.array([0, 100, 150, 200]),
    )  # fmt: skip
    histories = RandomHistories(samples, 6, seed=1)
    every = np.arange(200)
    got = histories[every]
    for row, length in zip(got.tolist(), before.tolist(), strict=True):
        drawn = [d for d in row if d]
        assert row == [0] * (6 - len(drawn)) + sorted(drawn, reverse=True)
        assert len(set(drawn)) == len(drawn) == min(6, length)
        assert all(1 <= d <= length for d in drawn)
    assert got[1].tolist() == [6, 5, 4, 3, 2, 1]
    order = np.random.default_rng(0).permutation(every)  # a sample's do not depend on who else is asked for
    assert np.array_equal(histories[order], got[order])
    assert not np.array_equal(got, RandomHistories(samples, 6, seed=2)[every])
    # Each of 50 behaviours is drawn about 40 * 6 / 50 times: the whole history, ends included.
    drawn = got[before == 50]
    assert drawn.min() <= 3
    assert drawn.max() >= 48
    assert drawn.mean() == pytest.approx(25.5, abs=3)


def test_a_randomised_source_changes_the_retrieved_histories_only():
    other = SOURCE.randomised(3)
    assert np.array_equal(other.rows(SAMPLES, False), SOURCE.rows(SAMPLES, False))
    drawn, retrieved = (one.rows(SAMPLES, True) for one in (other, SOURCE))
    differing = (drawn != retrieved).any(1)
    assert differing.sum() > len(SAMPLES) / 2
    kept = drawn[:, [0, 1, -1]] == retrieved[:, [0, 1, -1]]
    assert kept.all()  # profile, heading and question
