import logging
import math

import pytest

from assets import stage
from assets.stage import training_progress
from rarec.training.progress import Progress


class Recorder:
    """Stands for an MLflow run."""

    def __init__(self):
        self.logged = []

    def log_metrics(self, values, step=0):
        self.logged += [(name, value, step) for name, value in values.items()]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stage.time, "monotonic", lambda: now[0])
    return now


def test_training_progress_goes_to_mlflow_by_step_and_by_epoch(clock):
    run = Recorder()
    show = training_progress(run)
    show(Progress("retrieval of all neighbour lists"))
    show(Progress("fine-tuning", epoch=2, epochs=3, step=7, steps=20, loss=0.5, metrics={"samples_per_s": 10.0}))
    show(Progress("fine-tuning", epoch=2, epochs=3, loss=0.25, metrics={"NDCG@10": 0.1}))
    # Step 7 of the second epoch of 20 steps is the 27th.
    assert run.logged == [("loss", 0.5, 27), ("NDCG@10", 0.1, 2), ("epoch_loss", 0.25, 2)]


def test_the_terminal_gets_every_epoch_but_only_some_steps(clock, caplog):
    caplog.set_level(logging.INFO, logger="rarec.progress")
    show = training_progress(Recorder())
    for second in range(8):
        clock[0] = float(second)
        show(Progress("s", epoch=1, step=second + 1, steps=8, loss=math.pi, metrics={"samples_per_s": 9.0, "x": 1.0}))
    show(Progress("s", epoch=1, loss=1.0, metrics={"HR@10": 0.5}))
    lines = [record.getMessage().split() for record in caplog.records]
    assert [line[line.index("loss") - 1] for line in lines] == ["1/8", "6/8", "1"]
    assert "9" in lines[0]
    assert "x" not in lines[0]
    assert lines[2][-2:] == ["HR@10", "0.5"]
