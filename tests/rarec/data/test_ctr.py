import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from rarec.data.ctr import CtrSamples, CtrSettings, build_ctr_samples, ctr_leaks, draw
from rarec.errors import InputError

LENGTHS = [8, 3, 0, 12, 6, 9] * 6


def interactions(seed=0, span=30):
    """(user, time, liked) sorted by user and time, with many equal times."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    times = np.concatenate([np.sort(rng.integers(0, span, n)) for n in LENGTHS])
    return users, times, rng.random(len(users)) < 0.5


def build(time="clock", **settings):
    users, times, liked = interactions()
    return build_ctr_samples(users, times, liked, len(LENGTHS), time, CtrSettings(**settings))


def test_every_interaction_with_enough_history_is_a_sample():
    users, _, liked = interactions()
    samples = build(minimum_history=5, train_share=0.5, valid_share=0.25)
    before = {p: int((users[:p] == users[p]).sum()) for p in range(len(users))}
    assert sorted(samples.position.tolist()) == [p for p, n in before.items() if n >= 5]
    assert np.array_equal(samples.label, liked[samples.position])
    assert np.array_equal(samples.user, users[samples.position])
    assert [before[p] for p in samples.position] == (samples.position - samples.history_start).tolist()


def test_the_split_is_cut_in_global_time_with_stable_ties():
    users, times, _ = interactions()
    samples = build(train_share=0.5, valid_share=0.25)
    key = [(times[p], users[p], p) for p in samples.position]
    assert key == sorted(key)
    assert len({t for t, _, _ in key}) < len(key)  # there are ties
    n = len(samples)
    rows = [samples.rows(split) for split in ("train", "valid", "test")]
    assert [(r.start, r.stop) for r in rows] == [(0, n // 2), (n // 2, n // 2 + n // 4), (n // 2 + n // 4, n)]


def test_the_published_split_of_ml_1m():
    """970,009 samples are cut into 776,007 / 97,000 / 97,002 (ReLLa, table 1)."""
    users = np.zeros(970_009 + 5, dtype=int)
    liked = np.arange(len(users)) % 2 == 0
    samples = build_ctr_samples(users, np.arange(len(users)), liked, 1, "clock", CtrSettings())
    assert np.diff(samples.bounds).tolist() == [776_007, 97_000, 97_002]


@pytest.mark.parametrize("time", ["order", "none"])
def test_without_a_clock_each_user_gives_one_sample_and_the_seed_splits(time):
    users, _, _ = interactions()
    samples = build(time, minimum_history=5, train_share=0.4, valid_share=0.25)
    last = {u: int(np.flatnonzero(users == u)[-1]) for u, n in enumerate(LENGTHS) if n > 5}
    assert sorted(samples.position.tolist()) == sorted(last.values())
    again = build(time, minimum_history=5, train_share=0.4, valid_share=0.25)
    assert np.array_equal(samples.position, again.position)


def test_save_and_load(tmp_path):
    samples = build()
    samples.save(tmp_path)
    back = CtrSamples.load(tmp_path)
    for name, value in vars(samples).items():
        assert np.array_equal(value, getattr(back, name))


def test_empty_and_one_class_splits_are_refused():
    users, times, _ = interactions()
    nobody = CtrSettings(minimum_history=100)
    with pytest.raises(
        InputError, match=r"the train split is empty: only 0 interactions have 100 or more by the same user before them"
    ):
        build_ctr_samples(users, times, np.ones(len(users), bool), len(LENGTHS), "clock", nobody)
    with pytest.raises(InputError, match=r"all \d+ targets of the train split are liked.*label_threshold"):
        build_ctr_samples(users, times, np.ones(len(users), bool), len(LENGTHS), "clock", CtrSettings())
    with pytest.raises(ValidationError, match="leaves no test split"):
        CtrSettings(train_share=0.9, valid_share=0.1)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_few_drawn_samples_are_part_of_many(split):
    samples = build(train_share=0.4, valid_share=0.3)
    rows = samples.rows(split)
    own = range(rows.start, rows.stop)
    few, many = (draw(samples, split, most, seed=3).tolist() for most in (5, 12))
    assert (len(few), len(many)) == (5, 12)
    assert set(few) < set(many) < set(own)
    assert few == sorted(few)
    assert many == sorted(many)
    assert draw(samples, split, 10**6, seed=3).tolist() == list(own)  # no more than there are
    assert draw(samples, split, 12, seed=3).tolist() == many != draw(samples, split, 12, seed=4).tolist()


def test_leaks_are_counted():
    _, times, _ = interactions()
    samples = build()
    assert ctr_leaks(samples, times, "clock") == {"repeated": 0, "out_of_order": 0}
    first, last = samples.rows("train").start, samples.rows("test").stop - 1
    position = samples.position.copy()
    position[[first, last]] = position[[last, first]]
    exchanged = dataclasses.replace(samples, position=position)
    assert ctr_leaks(exchanged, times, "clock")["out_of_order"] > 0
    assert ctr_leaks(exchanged, times, "none") == {"repeated": 0, "out_of_order": 0}
    position[first] = position[last]
    assert ctr_leaks(dataclasses.replace(samples, position=position), times, "none")["repeated"] == 1
