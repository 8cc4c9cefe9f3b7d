"""The epoch loop of every training: train, validate, keep the best weights, stop early, resume."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rarec.config import Settings
from rarec.errors import InputError
from rarec.training.engine import (
    all_sum,
    from_rank_0,
    initialise_engine,
    peak_memory_mib,
    rank,
    return_freed_memory,
    worker_device,
    world_size,
)

Report = Callable[..., None]
STATE = "state.safetensors"
HISTORY = "history.json"
SUMMARY = "summary.json"


class FitSettings(Settings):
    """What every training has."""

    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's learning rate.")
    epochs: int = Field(default=100, ge=1, description="Most epochs.")
    patience: int = Field(
        default=10, ge=1, description="Stop after this many epochs without a better validation figure."
    )
    schedule: Literal["constant", "linear"] = Field(
        default="constant", description="Whether the learning rate stays, or falls to zero over the epochs allowed."
    )


class Objective(Protocol):
    """What a stage gives the loop."""

    choice: str
    """The validation metric by which weights are chosen: the greater, the better."""

    @property
    def model(self) -> nn.Module:
        """Maps one batch to ``(summed loss of this rank's share, {name: summed value})``; its parameters that require
        gradients are trained, saved and restored, everything else stays as it is.
        """

    def start_epoch(self, epoch: int) -> int:
        """Fix the epoch's data order and random bits from (seed, epoch); return the number of steps."""

    def batches(self) -> Iterator[tuple[Sequence[Any], int]]:
        """This rank's share of every step, in one piece or several whose gradients are added up (as many on every
        rank), and the number of samples in the step over all ranks.
        """

    def validate(self) -> dict[str, float]:
        """Validation metrics of the current weights; must hold ``choice``."""


def fit(
    objective: Objective, settings: FitSettings, *, stage: str, output: Path, checkpoint: Path, report: Report
) -> dict[str, Any]:
    """Train until ``patience`` epochs bring no better validation ``choice``; leave the best weights in the model.

    After each epoch the state is written to ``checkpoint`` (a folder); a call that finds one goes on from there and
    ends with the same weights as an undisturbed run. At the end ``output`` gets `HISTORY`: the figures of every epoch,
    which repeat; and ``checkpoint`` gets `SUMMARY`: all that is returned, times included, which do not.

    Returns:
        ``history`` (one record an epoch), ``best_epoch``, ``seconds``, ``peak_memory_mib``, ``world_size``.

    Raises:
        InputError: the loss is not finite; names epoch and step.
    """
    device = worker_device()
    epochs = settings.epochs
    choice = objective.choice
    engine = initialise_engine(objective.model, settings.learning_rate, device)
    state = _restore(checkpoint, objective.model, engine.optimizer)
    history: list[dict[str, float]] = state["history"]
    best = state["best"]
    started = time.perf_counter() - state["seconds"]
    for epoch in range(len(history), epochs):
        if history and len(history) - 1 - best_epoch(history, choice) >= settings.patience:
            break
        record = _train_epoch(objective, engine, settings, stage, epoch, report)
        train_seconds = record["train_seconds"]
        clock = time.perf_counter()
        record |= from_rank_0(objective.validate() if rank() == 0 else {})
        return_freed_memory()
        record["validation_seconds"] = time.perf_counter() - clock
        history.append(record)
        if best_epoch(history, choice) == epoch:
            best = {name: value.detach().clone() for name, value in _trained(objective.model).items()}
        if rank() == 0:
            _save(checkpoint, objective.model, engine.optimizer, best, history, time.perf_counter() - started)
        left = epochs - epoch - 1
        report(
            stage=stage,
            epoch=epoch + 1,
            epochs=epochs,
            eta_s=(train_seconds + record["validation_seconds"]) * left,
            force=True,
            **{k: v for k, v in record.items() if k != "epoch"},
        )
    _load(objective.model, best)
    summary = {
        "history": history,
        "best_epoch": best_epoch(history, choice),
        "seconds": time.perf_counter() - started,
        "peak_memory_mib": peak_memory_mib(),
        "world_size": world_size(),
    }
    if rank() == 0:
        repeating = [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in history]
        lasting = {"history": repeating, "best_epoch": summary["best_epoch"]}
        (output / HISTORY).write_text(json.dumps(lasting, indent=1))
        (checkpoint / SUMMARY).write_text(json.dumps(summary, indent=1))
    return summary


def _train_epoch(
    objective: Objective, engine: Any, settings: FitSettings, stage: str, epoch: int, report: Report
) -> dict[str, float]:
    clock = time.perf_counter()
    epochs = settings.epochs
    objective.model.train()
    steps = objective.start_epoch(epoch)
    sums: dict[str, Tensor] = {}
    seen = 0
    for step, (pieces, samples) in enumerate(objective.batches(), start=1):
        if settings.schedule == "linear":
            for group in engine.optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 - (epoch + (step - 1) / steps) / epochs)
        for number, piece in enumerate(pieces, start=1):
            engine.set_gradient_accumulation_boundary(number == len(pieces))
            loss, parts = engine(piece)
            try:
                engine.backward(loss * (world_size() / samples))
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{stage}: out of memory in the backward pass of epoch {epoch + 1}, step {step} of {steps} "
                    f"({samples} samples a step, in {len(pieces)} pieces); lower batch_size or piece_tokens"
                ) from error
            engine.step()
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
        seen += samples
        if step % 20 == 0 or step == steps:
            mean = float(sums["loss"]) * world_size() / seen
            if not math.isfinite(mean):
                raise InputError(
                    f"{stage}: the loss is {mean} at epoch {epoch + 1}, step {step} of {steps}; lower learning_rate. "
                    "The checkpoint of the last whole epoch is kept."
                )
            elapsed = time.perf_counter() - clock
            report(
                stage=stage, epoch=epoch + 1, epochs=epochs, step=step, steps=steps, loss=mean,
                samples_per_s=seen / elapsed, eta_s=elapsed / step * (steps * (epochs - epoch) - step),
            )  # fmt: skip
    record = {name: float(all_sum(value)) / seen for name, value in sums.items()}
    return {"epoch": epoch + 1, **record, "train_seconds": time.perf_counter() - clock}


def best_epoch(history: list[dict[str, float]], choice: str) -> int:
    """Index of the first epoch with the highest ``choice``."""
    return max(range(len(history)), key=lambda e: (history[e][choice], -e))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require gradients: what a frozen model below an adapter weighs is not copied."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    parameters = _trained(model)
    if parameters.keys() != weights.keys():
        raise ValueError(f"weights of {sorted(weights.keys() ^ parameters.keys())} are missing or too many")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _save(
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    best: Mapping[str, Tensor],
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    """Write the state beside its place and rename it, so that a crash leaves the last good one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in _trained(model).items()}
    tensors |= {f"best.{k}": v.contiguous().clone() for k, v in best.items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{k}": v.detach().contiguous().clone() for k, v in values.items()}
    beside = folder / "state.safetensors.new"
    metadata = {"history": json.dumps(history), "seconds": str(seconds), "workers": _workers()}
    try:
        save_file(tensors, beside, metadata=metadata)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, folder / STATE)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the checkpoint {folder / STATE} cannot be written: {error}; make room there, then run again: it goes on "
            "from the checkpoint before"
        ) from error


def _workers() -> str:
    """What the course of a training depends on besides its settings: dropout differs with ranks and kind of device."""
    return f"{world_size()} on {worker_device().type}"


def _restore(folder: Path, model: nn.Module, optimizer: Any) -> dict[str, Any]:
    file = folder / STATE
    nothing: dict[str, Any] = {"history": [], "best": {}, "seconds": 0.0}
    if not file.exists():
        return nothing
    try:
        with safe_open(file, framework="pt") as reader:
            metadata = reader.metadata()
    except SafetensorError as error:
        print(f"the checkpoint {file} is damaged ({error}); training starts from the beginning", flush=True)
        return nothing
    if metadata["workers"] != _workers():
        raise InputError(
            f"the checkpoint {file} is of a training with {metadata['workers']} and cannot go on with {_workers()}: "
            "the result would be neither's; use the same number of processes and device, or start afresh with force"
        )
    tensors = load_file(file)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
    adam: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, rest = name.split(".", 1)
        if group == "adam":
            number, key = rest.split(".", 1)
            adam.setdefault(int(number), {})[key] = value
        else:
            groups[group][rest] = value
    _load(model, groups["model"])
    layout = optimizer.state_dict()
    optimizer.load_state_dict({"state": adam, "param_groups": layout["param_groups"]})
    return {
        "history": json.loads(metadata["history"]),
        "best": groups["best"],
        "seconds": float(metadata["seconds"]),
    }
