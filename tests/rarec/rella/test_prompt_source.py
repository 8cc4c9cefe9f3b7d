import numpy as np
import pytest
from callers_data import unchanged
from rella_toys import BEHAVIOURS, TEMPLATE, toy_data

from rarec.data.templates import item_texts, profile_texts
from rarec.rella.prompt_source import PromptSource

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
