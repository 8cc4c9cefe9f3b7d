"""Small trainings of a regression, which can be broken off."""

import torch
from torch import nn

from rarec.training.dropout import DropoutBits
from rarec.training.fit import FitSettings, fit

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

    def batches(self, first=0):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split([2, 6, 4])[first:]:
            yield rows.split(self.piece), len(rows)

    def random_state(self):
        return {}

    def restore_random_state(self, state):
        assert state == {}

    def validate(self):
        self.seen.append(self.model.layer.weight.detach().clone())
        return {CHOICE: self.figures[self.epoch], "HR@10": 2 * self.figures[self.epoch]}


class Noisy(Scripted):
    """Twelve steps an epoch, each with random noise; breaks off before a step of an epoch."""

    def __init__(self, interrupt_before=None):
        super().__init__([0.1, 0.3, 0.2])
        self.interrupt_before = interrupt_before
        self.bits = DropoutBits(0)
        self.steps = []

    def start_epoch(self, epoch):
        super().start_epoch(epoch)
        self.bits.seed(7, epoch)
        return 12

    def batches(self, first=0):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch))
        for step in range(first, 12):
            if (self.epoch, step) == self.interrupt_before:
                raise Interrupted
            self.steps.append((self.epoch, step))
            # A row may be dropped, which shows in every weight that comes after.
            kept = self.bits.scaled_mask(torch.Size([4]), 0.5) > 0
            rows = order[[step, (step + 1) % 12, (step + 2) % 12, (step + 5) % 12]]
            yield [rows[kept]], 4

    def random_state(self):
        return self.bits.state()

    def restore_random_state(self, state):
        self.bits.restore(state)


def run(objective, folder, epochs=10, patience=2, learning_rate=0.05, schedule="constant", **options):
    reports = []
    summary = fit(
        objective, FitSettings(learning_rate=learning_rate, epochs=epochs, patience=patience, schedule=schedule),
        stage="test stage", output=folder, checkpoint=folder, report=lambda **values: reports.append(values), **options,
    )  # fmt: skip
    return summary, reports


def without_clock(summary):
    return (
        summary["best_epoch"],
        [{k: v for k, v in r.items() if not k.endswith("_seconds")} for r in summary["history"]],
    )
