"""The trials of a sweep."""

from rarec.studies.sweeps import RaserecSweepSettings


def test_trials_in_order():
    grid = RaserecSweepSettings(memories=(1, 2), alpha=(0.5,), beta=(1.0, 2.0))
    assert [tuple(trial.values()) for trial in grid.trials()] == [
        (1, 0.5, 1.0), (1, 0.5, 2.0), (2, 0.5, 1.0), (2, 0.5, 2.0)
    ]  # fmt: skip
