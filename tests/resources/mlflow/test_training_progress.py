import itertools
import logging
import math

import pytest
from fake_run import FakeRun

from rarec.training.progress import Progress
from resources.mlflow import training_progress as module
from resources.mlflow.training_progress import training_progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_training_progress_goes_to_mlflow_by_step_and_by_epoch(clock):
    run = FakeRun()
    show = training_progress(run)
    rates = {"samples_per_s": 10.0, "learning_rate": 1e-3}
    show(Progress("retrieval of all neighbour lists"))
    show(Progress("fine-tuning", epoch=2, epochs=3, step=7, steps=20, loss=0.5, eta_s=80.0, metrics=rates))
    show(Progress("fine-tuning", epoch=2, epochs=3, loss=0.25, metrics={"NDCG@10": 0.1}))
    # Step 7 of the second epoch of 20 steps is the 27th.
    assert run.metrics == [
        ("loss", 0.5, 27), ("eta_s", 80.0, 27), ("samples_per_s", 10.0, 27), ("learning_rate", 1e-3, 27),
        ("NDCG@10", 0.1, 2), ("epoch_loss", 0.25, 2),
    ]  # fmt: skip


def test_mlflow_gets_all_epochs_and_ever_fewer_steps(clock):
    """An hour of a step a second, an epoch a minute."""
    run = FakeRun()
    show = training_progress(run)
    for second in range(3600):
        clock[0] = float(second)
        show(Progress("s", epoch=second // 60 + 1, step=second % 60 + 1, steps=60, loss=1.0))
        if second % 60 == 59:
            show(Progress("s", epoch=second // 60 + 1, loss=1.0))
    assert [step for name, _, step in run.metrics if name == "epoch_loss"] == list(range(1, 61))
    steps = [step for name, _, step in run.metrics if name == "loss"]
    assert steps[:4] == [1, 3, 5, 7]
    assert max(b - a for a, b in itertools.pairwise(steps)) == 18  # half a per cent of an hour
    assert 400 < len(steps) < 600


def test_the_terminal_gets_every_epoch_but_only_some_steps(clock, caplog):
    caplog.set_level(logging.INFO, logger="rarec.progress")
    show = training_progress(FakeRun())
    for second in range(8):
        clock[0] = float(second)
        show(Progress("s", epoch=1, step=second + 1, steps=8, loss=math.pi, metrics={"samples_per_s": 9.0, "x": 1.0}))
    show(Progress("s", epoch=1, loss=1.0, metrics={"HR@10": 0.5}))
    lines = [record.getMessage().split() for record in caplog.records]
    assert [line[line.index("loss") - 1] for line in lines] == ["1/8", "6/8", "1"]
    assert "9" in lines[0]
    assert "x" not in lines[0]
    assert lines[2][-2:] == ["HR@10", "0.5"]
