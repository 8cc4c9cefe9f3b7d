"""Epochs, early stopping, the clock, and what a training says of itself; on every engine."""

import json
import math

import pytest
import torch
from fit_toys import CHOICE, Interrupted, Noisy, Regression, Scripted, run

from rarec.errors import InputError
from rarec.training.engine_settings import EngineSettings
from rarec.training.fit import ENGINE, HISTORY, SUMMARY, FitSettings

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize(
    ("figures", "patience", "epochs", "run_epochs", "best"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.9], 2, 5, 4, 1),  # two epochs without a better one
        ([0.1, 0.3, 0.2, 0.35, 0.2, 0.2, 0.9], 2, 7, 6, 3),  # the count starts again at every better one
        ([0.3, 0.3, 0.3, 0.9], 2, 4, 3, 0),  # equal is not better
        ([0.1, 0.2, 0.3], 2, 3, 3, 2),  # out of epochs
        ([0.5, 0.1], 1, 2, 2, 0),
        ([0.5, 0.1, 0.9], 1, 3, 2, 0),
    ],
)
def test_early_stopping_and_best_weights(tmp_path, figures, patience, epochs, run_epochs, best):
    objective = Scripted(figures)
    summary, reports = run(objective, tmp_path, epochs, patience)
    assert [record[CHOICE] for record in summary["history"]] == figures[:run_epochs]
    assert [record["epoch"] for record in summary["history"]] == list(range(1, run_epochs + 1))
    assert summary["best_epoch"] == best
    assert torch.equal(objective.model.layer.weight, objective.seen[best])
    assert best == run_epochs - 1 or not torch.equal(objective.model.layer.weight, objective.seen[-1])
    ends = [r for r in reports if r.get("force")]
    assert [(r["epoch"], r["epochs"], r[CHOICE]) for r in ends] == [
        (e + 1, epochs, figures[e]) for e in range(run_epochs)
    ]
    assert all(r["stage"] == "test stage" and r["eta_s"] >= r["soonest_s"] >= 0 for r in reports)
    assert ends[-1]["soonest_s"] == 0
    if run_epochs > 1 and epochs > 1 + patience:
        took = summary["history"][0]
        epoch_s = took["train_seconds"] + took["validation_seconds"]
        assert ends[0]["eta_s"] == pytest.approx(epoch_s * (epochs - 1))
        assert ends[0]["soonest_s"] == pytest.approx(epoch_s * patience)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_steps_equal_plain_adam_on_the_mean_of_each_batch(tmp_path, schedule):
    objective = Scripted([0.1, 0.2, 0.3])
    summary, _ = run(objective, tmp_path, epochs=3, schedule=schedule)
    plain = Regression()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for epoch in range(3):
        loss_sum = error_sum = 0.0
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
        for step, rows in enumerate(order.split([2, 6, 4])):
            if schedule == "linear":  # nine steps from the whole rate down
                optimizer.param_groups[0]["lr"] = 0.05 * (9 - 3 * epoch - step) / 9
            optimizer.zero_grad()
            loss, parts = plain(rows)
            (loss / len(rows)).backward()
            optimizer.step()
            loss_sum, error_sum = loss_sum + float(loss.detach()), error_sum + float(parts["absolute_error"])
        assert summary["history"][epoch]["loss"] == pytest.approx(loss_sum / 12, rel=1e-5)
        assert summary["history"][epoch]["absolute_error"] == pytest.approx(error_sum / 12, rel=1e-5)
    for one, other in zip(objective.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert summary["history"][2]["loss"] < summary["history"][0]["loss"]


@pytest.mark.parametrize("piece", [1, 2, 5])
def test_steps_in_pieces_trace_the_same_loss(tmp_path, piece):
    """One piece of six samples or six of one: the loss is divided by the samples of the step, not of the piece."""
    whole, _ = run(Scripted([0.1, 0.2, 0.3]), tmp_path / "whole", epochs=3)
    objective = Scripted([0.1, 0.2, 0.3], piece=piece)
    summary, _ = run(objective, tmp_path / "pieces", epochs=3)
    for one, other in zip(summary["history"], whole["history"], strict=True):
        for name in ("loss", "absolute_error"):
            assert one[name] == pytest.approx(other[name], rel=1e-5)


def test_what_lasts_repeats_and_what_does_not_stays_with_the_checkpoint(tmp_path):
    written = []
    for name in "ab":
        summary, _ = run(Scripted([0.1, 0.3]), tmp_path / name, epochs=2)
        assert json.loads((tmp_path / name / SUMMARY).read_text()) == summary
        written.append((tmp_path / name / HISTORY).read_text())
    assert written[0] == written[1]
    lasting = json.loads(written[0])
    assert lasting["best_epoch"] == 1
    assert [record[CHOICE] for record in lasting["history"]] == [0.1, 0.3]
    assert not [name for name in lasting["history"][0] if "seconds" in name]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_step_and_keeps_the_checkpoint(tmp_path, value):
    class Diverging(Scripted):
        def batches(self, first=0):
            for step, batch in enumerate(super().batches(first), start=1):
                if self.epoch == 1 and step == 2:
                    self.model.layer.bias.data.fill_(value)
                yield batch

    objective = Diverging([0.1, 0.2, 0.3])
    with pytest.raises(
        InputError, match=r"test stage: the loss is (nan|inf) at epoch 2, step [23] of 3; lower learning_"
    ):
        run(objective, tmp_path, epochs=3)
    assert len(objective.seen) == 1  # the broken epoch was not validated
    resumed = Scripted([0.1, 0.2, 0.3])
    summary, _ = run(resumed, tmp_path, epochs=3)
    assert resumed.started == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in summary["history"])


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    from rarec.training import fit as module

    saved = []
    monkeypatch.setattr(module, "save_state", lambda *_: saved.append(None))
    run(Noisy(), tmp_path, epochs=1, engine=EngineSettings(checkpoint_minutes=1e-9))
    assert len(saved) == 12  # after every step, and at the end
    saved.clear()
    run(Noisy(), tmp_path, epochs=1, engine=EngineSettings(checkpoint_minutes=5))
    run(Noisy(), tmp_path, epochs=1, engine=EngineSettings(checkpoint_minutes=0))
    assert len(saved) == 2


@pytest.mark.parametrize(("step_s", "saved_after"), [(60.0, [5, 10]), (400.0, list(range(1, 12))), (0.001, [])])
def test_checkpoints_are_in_time_however_slow_the_steps(tmp_path, monkeypatch, step_s, saved_after):
    """And ranks that must ask rank 0 for the time do so no more than it takes."""
    from rarec.training import fit as module

    class Clock:
        now = 0.0

    class Slow(Noisy):
        def batches(self, first=0):
            for batch in super().batches(first):
                Clock.now += step_s
                yield batch

    asked, saved = [], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(module, "from_rank_0", lambda value: asked.append(value) or value)
    monkeypatch.setattr(module, "save_state", lambda *values: saved.append(values[3].step))
    run(Slow(), tmp_path, epochs=1, engine=EngineSettings(checkpoint_minutes=5))
    assert saved == [*saved_after, 0]
    looks = [value for value in asked if isinstance(value, tuple)]
    assert len(looks) == {60.0: 3, 400.0: 11, 0.001: 1}[step_s]


def test_a_resumed_epoch_counts_the_time_of_its_first_part(tmp_path, monkeypatch):
    from rarec.training import fit as module

    class Clock:
        now = 0.0

    class Timed(Noisy):
        def batches(self, first=0):
            for batch in super().batches(first):
                Clock.now += 10.0
                yield batch

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    engine = EngineSettings(checkpoint_steps=4)
    with pytest.raises(Interrupted):
        run(Timed((1, 9)), tmp_path, epochs=2, engine=engine)
    summary, _ = run(Timed(), tmp_path, epochs=2, engine=engine)
    assert [record["train_seconds"] for record in summary["history"]] == [120.0, 120.0]
    assert summary["seconds"] == 240.0  # the lost step 9 not counted


def test_a_broken_loss_of_another_rank_never_replaces_a_good_checkpoint(tmp_path, monkeypatch):
    from rarec.training import fit as module

    saved = []
    monkeypatch.setattr(module, "save_state", lambda *values: saved.append(values[3].step))
    monkeypatch.setattr(module, "from_every_rank", lambda sums: [sums, {**sums, "loss": math.nan}])
    with pytest.raises(InputError, match=r"test stage: the loss is nan at epoch 1, step 4 of 12"):
        run(Noisy(), tmp_path, epochs=1, engine=EngineSettings(checkpoint_steps=4))
    assert saved == []
    monkeypatch.undo()
    monkeypatch.setattr(module, "save_state", lambda *values: saved.append(values[3].step))
    monkeypatch.setattr(module, "all_sum", lambda value: value * math.nan)
    with pytest.raises(InputError, match=r"the loss is nan at epoch 1, step 12 of 12"):
        run(Noisy(), tmp_path, epochs=1)
    assert saved == []


def test_out_of_memory_in_the_forward_pass_and_in_the_optimizer_says_what_to_lower(tmp_path, monkeypatch):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("no room")

    told = r"test stage: out of memory in epoch 1, step 1 of 12 \(4 samples per step, in 1 pieces"
    objective = Noisy()
    monkeypatch.setattr(objective.model, "forward", no_room)
    with pytest.raises(InputError, match=told):
        run(objective, tmp_path, epochs=1)
    monkeypatch.setattr(torch.optim.Adam, "step", no_room)
    with pytest.raises(InputError, match=told):
        run(Noisy(), tmp_path, epochs=1)


def test_the_memory_told_is_that_of_the_rank_that_took_most(tmp_path, monkeypatch):
    from rarec.training import fit as module

    monkeypatch.setattr(
        module, "from_every_rank", lambda own: [own, {**own, "peak_memory_mib": own["peak_memory_mib"] + 5}]
    )
    summary, _ = run(Scripted([0.1]), tmp_path, epochs=1)
    assert summary["peak_memory_mib"] == summary["ranks"][0]["peak_memory_mib"] + 5


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"zero_stage": 1}, 1e-6),
        ({"zero_stage": 2}, 1e-6),
        ({"zero_stage": 3}, 1e-6),
        ({"zero_stage": 2, "offload": True}, 1e-6),
        ({"zero_stage": 3, "offload": True}, 1e-6),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, 1e-6),
        ({"precision": "bf16"}, 0.03),
        ({"precision": "bf16", "zero_stage": 2}, 0.03),
    ],
)
def test_every_engine_trains_alike(tmp_path, settings, tolerance):
    plain, _ = run(Scripted([0.1, 0.2, 0.3]), tmp_path / "plain", epochs=3)
    objective = Scripted([0.1, 0.2, 0.3])
    summary, _ = run(objective, tmp_path / "other", epochs=3, engine=EngineSettings(**settings))
    for one, other in zip(summary["history"], plain["history"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
    assert all(parameter.dtype == torch.float32 for parameter in objective.model.parameters())
    assert objective.model.layer.weight.shape == (1, 3)
    kept = json.loads((tmp_path / "other" / ENGINE).read_text())
    assert kept["zero_optimization"]["stage"] == EngineSettings(**settings).stage


def test_clipped_training_is_plain_clipped_adam(tmp_path):
    class Last(Scripted):
        choice = None

        def validate(self):
            return {}

    objective = Last([])
    summary, _ = run(objective, tmp_path, epochs=3, schedule="cosine", clip=0.1)
    plain = Regression()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    settings = FitSettings(learning_rate=0.05, epochs=3, schedule="cosine")
    rates = []
    for epoch in range(3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
        for step, rows in enumerate(order.split([2, 6, 4])):
            rates.append(settings.rate(epoch, step, 3))
            optimizer.param_groups[0]["lr"] = rates[-1]
            optimizer.zero_grad()
            (plain(rows)[0] / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            optimizer.step()
    assert summary["best_epoch"] == 2  # without a choice the last weights are taken
    for one, other in zip(objective.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert 0.05 > rates[1] > rates[-1] > 0
    slow = FitSettings(learning_rate=1.0, epochs=2, schedule="cosine")
    assert slow.rate(0, 0, 1000) < 0.03 < slow.rate(0, 20, 1000) < 1
    assert slow.rate(0, 45, 1000) > 0.99
