import numpy as np
import pytest
from pydantic import ValidationError

from rarec.data.ctr import CtrSamples
from rarec.rella.training_samples import (
    TrainingSamples,
    TrainingSampleSettings,
    Variant,
    asked,
    draw_training_samples,
)

TRAIN = 3000
SAMPLES = CtrSamples(
    np.array([0, 5000]), np.arange(1000, 5000), np.arange(4000) % 3 == 0, np.array([0, TRAIN, 3500, 4000])
)


@pytest.mark.parametrize("mode", ["recent", "retrieved"])
def test_few_shots_are_part_of_many(mode):
    few, many = (draw_training_samples(SAMPLES, n, mode, seed=7) for n in (256, 1024))
    for shots, n in ((few, 256), (many, 1024)):
        assert len(shots) == len(set(shots.sample.tolist())) == n
        assert shots.sample.min() >= 0
        assert shots.sample.max() < TRAIN  # training rows only
        assert (shots.retrieved == (mode == "retrieved")).all()
    assert set(few.sample.tolist()) < set(many.sample.tolist())


def test_the_seed_draws_and_the_mode_does_not():
    first, again, other = (draw_training_samples(SAMPLES, 256, "recent", seed) for seed in (1, 1, 2))
    assert np.array_equal(first.sample, again.sample)
    assert not np.array_equal(first.sample, other.sample)
    assert np.array_equal(first.sample, draw_training_samples(SAMPLES, 256, "retrieved", 1).sample)
    # Not the earliest ones: the draw covers the whole split.
    assert np.histogram(first.sample, 4, (0, TRAIN))[0].min() > 40


def test_mixed_holds_each_sample_with_either_history():
    shots = draw_training_samples(SAMPLES, 256, "mixed", seed=7)
    assert len(shots) == 512
    recent, retrieved = shots.sample[~shots.retrieved], shots.sample[shots.retrieved]
    alone = draw_training_samples(SAMPLES, 256, "recent", seed=7).sample
    assert sorted(recent.tolist()) == sorted(retrieved.tolist()) == sorted(alone.tolist())


def test_controls_of_the_mixture():
    mixed, drawn, half = (
        draw_training_samples(SAMPLES, 256, mode, 7) for mode in ("mixed", "mixed-random", "mixed-half")
    )
    assert np.array_equal(drawn.sample, mixed.sample)
    assert np.array_equal(drawn.retrieved, mixed.retrieved)
    assert len(half) == 256  # as many prompts as 256 shots with one history
    assert set(half.sample.tolist()) < set(mixed.sample.tolist())
    assert half.retrieved.sum() == 128
    every = SAMPLES.rows("train").stop
    assert len(draw_training_samples(SAMPLES, 2 * every, "mixed-half", 7)) == every // 2 * 2  # half of what there is
    assert draw_training_samples(SAMPLES, 256, "random", 7).retrieved.all()


def test_what_is_asked_of_each_adapter():
    variants = TrainingSampleSettings(modes=("mixed", "recent", "retrieved", "mixed-half")).variants()
    assert [(one.mode, history) for one, history in asked(variants)] == [
        ("mixed", "recent"), ("mixed", "retrieved"), ("recent", "recent"), ("recent", "retrieved"),
        ("retrieved", "retrieved"), ("mixed-half", "recent"), ("mixed-half", "retrieved"),
    ]  # fmt: skip
    variants = TrainingSampleSettings(modes=("mixed", "mixed-random", "random")).variants()
    assert [(one.mode, history) for one, history in asked(variants)] == [
        ("mixed", "recent"), ("mixed", "retrieved"), ("mixed", "random"), ("mixed-random", "recent"),
        ("mixed-random", "random"), ("random", "random"),
    ]  # fmt: skip
    assert Variant.named("mixed-random-7") == Variant("mixed-random", 7)
    with pytest.raises(ValidationError, match="modes begins with random, a control; put the mode of the model first"):
        TrainingSampleSettings(modes=("random", "mixed"))


def test_more_shots_than_samples_are_all_of_them():
    assert sorted(draw_training_samples(SAMPLES, 10**6, "retrieved", 0).sample.tolist()) == list(range(TRAIN))
    assert len(draw_training_samples(SAMPLES, 10**6, "mixed", 0)) == 2 * TRAIN


def test_save_and_load(tmp_path):
    shots = draw_training_samples(SAMPLES, 10, "mixed", seed=7)
    shots.save(tmp_path / "mixed-7")
    back = TrainingSamples.load(tmp_path / "mixed-7")
    assert np.array_equal(back.sample, shots.sample)
    assert np.array_equal(back.retrieved, shots.retrieved)
    assert back.retrieved.dtype == bool


def test_settings_name_every_variant_once():
    settings = TrainingSampleSettings(modes=("mixed", "recent"), seeds=(3, 4))
    named = ["mixed-3", "recent-3", "mixed-4", "recent-4"]
    assert [variant.name for variant in settings.variants()] == named
    with pytest.raises(ValidationError, match=r"modes = \['recent', 'recent'\] must list at least one value"):
        TrainingSampleSettings(modes=("recent", "recent"))
    with pytest.raises(
        ValidationError, match=r"seeds = \[1, 2, 1\] must list at least one value, and none of them twice"
    ):
        TrainingSampleSettings(seeds=(1, 2, 1))
    with pytest.raises(ValidationError, match=r"seeds = \[\] must list at least one value"):
        TrainingSampleSettings(seeds=())
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        TrainingSampleSettings(seeds=(-1,))  # no generator takes one
    for wrong in ({"modes": ("newest",)}, {"shots": 0}):
        with pytest.raises(ValidationError):
            TrainingSampleSettings(**wrong)
