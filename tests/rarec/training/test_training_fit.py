import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from rarec.errors import InputError
from rarec.training.fit import HISTORY, SUMMARY, FitSettings, fit

pytestmark = pytest.mark.usefixtures("single_process")

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


CHOICE = "figure"


class Interrupted(Exception):
    """Stands for a killed process."""


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)  # no gradient ever reaches it

    def forward(self, rows):
        error = self.layer(X[rows])[:, 0] - Y[rows]
        return (error**2).sum(), {"absolute_error": error.detach().abs().sum()}


class Scripted:
    """Trains a regression on uneven batches; the validation figures are given beforehand."""

    choice = CHOICE

    def __init__(self, figures, interrupt_at=None, piece=12):
        self.piece = piece
        self.model = Regression()
        self.figures = list(figures)
        self.interrupt_at = interrupt_at
        self.epoch = -1
        self.started: list[int] = []
        self.seen: list[torch.Tensor] = []

    def start_epoch(self, epoch):
        if epoch == self.interrupt_at:
            raise Interrupted
        self.epoch = epoch
        self.started.append(epoch)
        return 3

    def batches(self):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split([2, 6, 4]):
            yield rows.split(self.piece), len(rows)

    def validate(self):
        self.seen.append(self.model.layer.weight.detach().clone())
        return {CHOICE: self.figures[self.epoch], "HR@10": 2 * self.figures[self.epoch]}


def run(objective, folder, epochs=10, patience=2, learning_rate=0.05, schedule="constant"):
    reports = []
    summary = fit(
        objective, FitSettings(learning_rate=learning_rate, epochs=epochs, patience=patience, schedule=schedule),
        stage="test stage", output=folder, checkpoint=folder, report=lambda **values: reports.append(values),
    )  # fmt: skip
    return summary, reports


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
    assert all(r["stage"] == "test stage" and r["eta_s"] >= 0 for r in reports)


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


def test_only_what_is_trained_is_kept(tmp_path):
    """A frozen part, as the model below an adapter, is in no checkpoint and stays as it is."""

    def frozen():
        objective = Scripted([0.1, 0.3, 0.2])
        objective.model.layer.weight.requires_grad_(False)
        return objective

    objective = frozen()
    before = objective.model.layer.weight.clone()
    run(objective, tmp_path, epochs=2)
    assert torch.equal(objective.model.layer.weight, before)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        assert {name for name in file.keys() if "layer" in name} == {"model.layer.bias", "best.layer.bias"}  # noqa: SIM118
    resumed = frozen()
    run(resumed, tmp_path, epochs=3)
    assert resumed.started == [2]
    with pytest.raises(ValueError, match=r"weights of \['layer\.weight'\] are missing"):
        run(Scripted([0.1, 0.3, 0.2]), tmp_path, epochs=3)


@pytest.mark.parametrize("interrupt_at", [1, 2, 3, 4])
def test_resumed_training_ends_as_if_undisturbed(tmp_path, interrupt_at):
    figures = [0.1, 0.4, 0.3, 0.2, 0.5, 0.1]  # patience 2 stops after the fourth
    straight = Scripted(figures)
    expected, _ = run(straight, tmp_path / "straight")
    broken = Scripted(figures, interrupt_at)
    if interrupt_at < 4:
        with pytest.raises(Interrupted):
            run(broken, tmp_path / "broken")
    else:
        run(broken, tmp_path / "broken")
    resumed = Scripted(figures)
    resumed.model.layer.weight.data.zero_()  # what it starts with must not matter
    summary, _ = run(resumed, tmp_path / "broken")
    assert resumed.started == list(range(interrupt_at, 4))
    assert without_clock(summary) == without_clock(expected)
    for one, other in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(resumed.model.layer.weight, straight.seen[1])


def without_clock(summary):
    return (
        summary["best_epoch"],
        [{k: v for k, v in r.items() if not k.endswith("_seconds")} for r in summary["history"]],
    )


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


def test_more_epochs_continue_a_finished_training(tmp_path):
    run(Scripted([0.1, 0.2, 0.3, 0.4]), tmp_path / "a", epochs=2)
    longer = Scripted([0.1, 0.2, 0.3, 0.4])
    summary, _ = run(longer, tmp_path / "a", epochs=4)
    straight, _ = run(Scripted([0.1, 0.2, 0.3, 0.4]), tmp_path / "b", epochs=4)
    assert longer.started == [2, 3]
    assert without_clock(summary) == without_clock(straight)
    assert summary["seconds"] >= sum(r["train_seconds"] for r in summary["history"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_step_and_keeps_the_checkpoint(tmp_path, value):
    class Diverging(Scripted):
        def batches(self):
            for step, batch in enumerate(super().batches(), start=1):
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


def test_a_crash_while_saving_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    from rarec.training import fit as module

    run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=1)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full_disk)
        with pytest.raises(
            InputError, match=r"state\.safetensors cannot be written: .*No space left.*; make room there"
        ):
            run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=3)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    resumed = Scripted([0.1, 0.2, 0.3])
    run(resumed, tmp_path, epochs=3)
    assert resumed.started == [1, 2]


def test_a_damaged_checkpoint_is_told_and_training_starts_from_the_beginning(tmp_path, capsys):
    run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=1)
    (tmp_path / "state.safetensors").write_bytes(b"no such format")
    again = Scripted([0.1, 0.2, 0.3])
    run(again, tmp_path, epochs=3)
    assert again.started == [0, 1, 2]
    assert "state.safetensors is damaged" in capsys.readouterr().out


def test_a_checkpoint_of_other_workers_is_refused(tmp_path, monkeypatch):
    from rarec.training import fit as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "_workers", lambda: "2 on cpu")
        run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=1)
    with pytest.raises(InputError, match=r"a training with 2 on cpu and cannot go on with 1 on cpu.*afresh with force"):
        run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=3)
