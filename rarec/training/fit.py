"""The training loop of every stage: steps, checkpoints, validation, early stopping, resuming."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from rarec.config import Settings
from rarec.errors import InputError
from rarec.training.checkpoint import TrainingState, full_weights, put_weights, restore_state, save_state
from rarec.training.engine import (
    adam,
    all_sum,
    from_every_rank,
    from_rank_0,
    initialise_engine,
    peak_memory_mib,
    rank,
    return_freed_memory,
    worker_device,
    world_size,
)
from rarec.training.engine_settings import EngineSettings
from rarec.training.out_of_memory import explain_out_of_memory
from rarec.training.pace import Pace
from rarec.training.progress import ReportProgress

HISTORY = "history.json"
ENGINE = "deepspeed.json"
SUMMARY = "summary.json"
WARM_UP = 0.02  # share of the cosine schedule's steps
_LOOK_STEPS = 20  # steps between looks at the loss, which make a GPU wait
_LOOK_S = 5.0


class FitSettings(Settings):
    """Settings of every training."""

    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's learning rate.")
    epochs: int = Field(default=100, ge=1, description="Most epochs to train.")
    patience: int = Field(
        default=10, ge=1, description="Epochs without a better validation metric after which training stops."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Learning rate schedule over all epochs: constant, linear to zero, or a short warm-up and a cosine "
        "to zero.",
    )

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of a step in an epoch, both counted from 0."""
        done = (epoch + step / steps) / self.epochs
        if self.schedule == "linear":
            return self.learning_rate * (1 - done)
        if self.schedule == "cosine":
            risen = (done + 1 / (steps * self.epochs)) / (WARM_UP + 1 / (steps * self.epochs))
            return self.learning_rate * min(1.0, risen) * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate


class Objective(Protocol):
    """What a stage gives the loop: a model, batches and validation."""

    @property
    def choice(self) -> str | None:
        """The validation metric, higher is better, by which weights are chosen; None takes the last weights."""

    @property
    def model(self) -> nn.Module:
        """Maps one batch to ``(summed loss of this rank's part, {name: summed value})``.

        Parameters that require gradients are trained, saved and restored. All others stay as they are.
        """

    def start_epoch(self, epoch: int) -> int:
        """Seed the epoch's data order and random bits by (seed, epoch); return the number of steps."""

    def batches(self, first: int) -> Iterator[tuple[Sequence[Any], int]]:
        """For every step from ``first`` on: this rank's part, and the number of samples over all ranks.

        The part is one piece, or several whose gradients are added up; every rank has the same number of pieces.
        """

    def random_state(self) -> dict[str, Tensor]:
        """The states of this rank's random generators, as uint8 tensors."""

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `random_state` returned."""

    def validate(self) -> dict[str, float]:
        """Validation metrics of the current weights, among them ``choice``.

        Called on all ranks. They share the work, unless the model is sharded (`is_sharded`): then a forward pass needs
        all of them, and all go through the same batches.
        """


def fit(
    objective: Objective,
    settings: FitSettings,
    *,
    stage: str,
    output: Path,
    checkpoint: Path,
    report: ReportProgress,
    engine: EngineSettings | None = None,
    optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer] = adam,
    clip: float = 0.0,
    unit: str = "samples",
) -> dict[str, Any]:
    """Train until ``patience`` epochs bring no better validation ``choice``; leave the best weights in the model.

    A checkpoint is written into the folder ``checkpoint`` after each epoch, and within epochs as ``engine`` says. A
    call that finds one resumes it and ends with the same weights as an uninterrupted run.

    At the end, ``output`` gets `HISTORY`, the metrics of every epoch, and `ENGINE`, DeepSpeed's configuration; both are
    reproducible. ``checkpoint`` gets `SUMMARY`: everything that is returned, including times.

    Args:
        optimizer: Makes the optimizer from parameters and learning rate.
        clip: Largest norm of a step's gradient; 0 means no limit.
        unit: What the objective counts as samples.

    Returns:
        ``history`` (one record per epoch), ``best_epoch``, ``seconds``, the number of samples under the name of their
        ``unit``, ``peak_memory_mib``, ``world_size``, and ``ranks``: peak memory of each rank, and its GPU's memory and
        seconds if it has one.

    Raises:
        InputError: The loss is not finite, a step does not fit into memory, or a checkpoint does not match or cannot be
            written.
    """
    engine = engine or EngineSettings()
    loop = _Loop(objective, settings, engine, stage, checkpoint, report, optimizer, clip, unit)
    loop.run()
    summary = loop.summary()
    put_weights(objective.model, loop.state.best)
    if rank() == 0:
        repeating = [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in summary["history"]]
        lasting = {"history": repeating, "best_epoch": summary["best_epoch"]}
        (output / HISTORY).write_text(json.dumps(lasting, indent=1))
        configuration = engine.configuration(worker_device().type, clip)
        (output / ENGINE).write_text(json.dumps(configuration, indent=1, sort_keys=True))
        (checkpoint / SUMMARY).write_text(json.dumps(summary, indent=1))
    return summary


class _Loop:
    """One training, from its last checkpoint to its end."""

    def __init__(
        self,
        objective: Objective,
        settings: FitSettings,
        engine: EngineSettings,
        stage: str,
        checkpoint: Path,
        report: ReportProgress,
        optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer],
        clip: float,
        unit: str,
    ):
        self.objective, self.settings, self.options = objective, settings, engine
        self.stage, self.checkpoint, self.report, self.unit = stage, checkpoint, report, unit
        self.engine = initialise_engine(
            objective.model,
            lambda parameters: optimizer(parameters, settings.learning_rate),
            engine,
            worker_device(),
            clip=clip,
        )
        self.state, self._random = restore_state(checkpoint, self.engine, engine.accumulation)
        if rank() == 0 and self.state.total:
            # For the run's log, which tells whether a second attempt lost anything.
            print(f"{stage}: resuming after {len(self.state.history)} epochs and {self.state.step} steps", flush=True)
        self._began = time.perf_counter() - self.state.seconds
        self._saved_at = time.perf_counter()
        self._look_at = 0  # step of the epoch at which to check again whether a checkpoint is due

    def run(self) -> None:
        """Train, epoch by epoch."""
        history, choice, epochs = self.state.history, self.objective.choice, self.settings.epochs
        for epoch in range(len(history), epochs):
            if self._soonest_end() <= epoch:
                break
            record = self._train_epoch(epoch)
            clock = time.perf_counter()
            record |= from_rank_0(self.objective.validate())
            return_freed_memory()
            record["validation_seconds"] = time.perf_counter() - clock
            history.append(record)
            if best_epoch(history, choice) == epoch:
                self.state.best = full_weights(self.engine)
            self._save({})
            self.report(
                stage=self.stage,
                epoch=epoch + 1,
                epochs=epochs,
                force=True,
                **self._eta(epoch + 1, 0.0, record["train_seconds"] + record["validation_seconds"]),
                **{k: v for k, v in record.items() if k != "epoch"},
            )

    def summary(self) -> dict[str, Any]:
        """What `fit` returns."""
        seconds = time.perf_counter() - self._began
        own: dict[str, float] = {"rank": rank(), "peak_memory_mib": peak_memory_mib()}
        if worker_device().type == "cuda":
            own |= {"gpu_peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20, "gpu_seconds": seconds}
        ranks = from_every_rank(own)
        return {
            "history": self.state.history,
            "best_epoch": best_epoch(self.state.history, self.objective.choice),
            "seconds": seconds,
            self.unit: self.state.total,
            "peak_memory_mib": max(one["peak_memory_mib"] for one in ranks),
            "world_size": world_size(),
            "ranks": ranks,
        }

    def _soonest_end(self) -> int:
        """Epochs after which training stops if no further one is better."""
        history = self.state.history
        best = best_epoch(history, self.objective.choice) if history else 0
        return min(best + 1 + self.settings.patience, self.settings.epochs)

    def _eta(self, epochs_done: int, rest: float, epoch_s: float) -> dict[str, float]:
        """Seconds to the end, with every epoch and if no further one is better.

        Args:
            epochs_done: Epochs that are done, or will be after ``rest`` seconds.
            rest: Seconds of the present epoch that are left.
            epoch_s: Seconds of each further epoch.
        """
        ends = {"eta_s": self.settings.epochs, "soonest_s": max(self._soonest_end(), epochs_done)}
        return {name: rest + epoch_s * (end - epochs_done) for name, end in ends.items()}

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        state, settings = self.state, self.settings
        clock = looked_at = time.perf_counter()
        before = state.train_seconds  # that earlier attempts spent on this epoch
        self._look_at = 0
        self.objective.model.train()
        steps = self.objective.start_epoch(epoch)
        if state.step:
            self.objective.restore_random_state(self._random)
        sums = {name: torch.tensor(values[rank()]) for name, values in state.sums.items()}
        first, seen = state.step, state.seen
        pace = Pace(first, clock)
        validation_s = state.history[-1]["validation_seconds"] if state.history else 0.0
        for step, (pieces, samples) in enumerate(self.objective.batches(first), start=first + 1):
            rate = settings.rate(epoch, step - 1, steps)
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
            for name, value in self._step(pieces, samples, f"epoch {epoch + 1}, step {step} of {steps}").items():
                sums[name] = sums.get(name, torch.zeros(())).to(value.device) + value
            seen += samples
            state.total += samples
            now = time.perf_counter()
            if step % _LOOK_STEPS == 0 or step == steps or now - looked_at >= _LOOK_S:
                looked_at = now
                self._look(float(sums["loss"]) * world_size() / seen, epoch, step, steps)
                elapsed = now - clock
                step_s = pace.look(step, now) or 0.0
                self.report(
                    stage=self.stage, epoch=epoch + 1, epochs=settings.epochs, step=step, steps=steps,
                    loss=float(sums["loss"]) * world_size() / seen, learning_rate=rate,
                    **self._eta(epoch + 1, step_s * (steps - step) + validation_s, step_s * steps + validation_s),
                    **{f"{self.unit}_per_s": (seen - state.seen) / elapsed},
                )  # fmt: skip
            if step < steps and self._is_due(step, (now - clock) / (step - first)):
                # Each rank's own sums: parts of their total would round differently from an uninterrupted run.
                ranks = from_every_rank({name: float(value) for name, value in sums.items()})
                own = {name: [one[name] for one in ranks] for name in sums}
                self._look(sum(own["loss"]) / seen, epoch, step, steps)  # a broken state never replaces a good one
                took = before + time.perf_counter() - clock
                self._save(self.objective.random_state(), step=step, seen=seen, sums=own, train_seconds=took)
        state.step, state.seen, state.sums, state.train_seconds = 0, 0, {}, 0.0
        record = {name: float(all_sum(value)) / seen for name, value in sums.items()}
        self._look(record["loss"], epoch, steps, steps)
        return {"epoch": epoch + 1, **record, "train_seconds": before + time.perf_counter() - clock}

    def _step(self, pieces: Sequence[Any], samples: int, where: str) -> dict[str, Tensor]:
        """Do one step of the optimizer; return sums of the loss and its parts over this rank's pieces."""
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(pieces))
            with explain_out_of_memory(
                f"{self.stage}: out of memory in {where} ({samples} samples per step, in {len(pieces)} pieces per "
                "process); lower batch_size, or raise the launcher's accumulation"
            ):
                loss, parts = self.engine(piece)
                self.engine.backward(loss * (world_size() / samples))
                self.engine.step()
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums[name] + value if name in sums else value
        return sums

    def _look(self, mean: float, epoch: int, step: int, steps: int) -> None:
        if not math.isfinite(mean):
            raise InputError(
                f"{self.stage}: the loss is {mean} at epoch {epoch + 1}, step {step} of {steps}; lower learning_rate. "
                "The last checkpoint is kept."
            )

    def _is_due(self, step: int, pace: float) -> bool:
        """Whether a checkpoint within the epoch is due. All ranks decide alike, by the clock of rank 0.

        Args:
            pace: Mean seconds per step in this epoch.
        """
        options = self.options
        if options.checkpoint_steps and step % options.checkpoint_steps == 0:
            return True
        if not options.checkpoint_minutes or step < self._look_at:
            return False
        interval = 60 * options.checkpoint_minutes
        left = interval - (time.perf_counter() - self._saved_at)
        # Ranks must ask rank 0, so they do not ask at every step unless steps are slow.
        pause = max(1, min(_LOOK_STEPS, int((left if left > 0 else interval) / pace)))
        due, self._look_at = from_rank_0((left <= 0, step + pause))
        return due

    def _save(self, random: dict[str, Tensor], **within: Any) -> None:
        """Write a checkpoint; ``within`` says where in the epoch."""
        state = self.state
        state.seconds = time.perf_counter() - self._began
        written = TrainingState(state.history, state.best, state.seconds, total=state.total, **within)
        save_state(self.checkpoint, self.engine, random, written, self.options.accumulation)
        self._saved_at = time.perf_counter()


def best_epoch(history: list[dict[str, float]], choice: str | None) -> int:
    """Index of the first epoch with the highest ``choice``; without a choice, of the last epoch."""
    if choice is None:
        return len(history) - 1
    return max(range(len(history)), key=lambda e: (history[e][choice], -e))
