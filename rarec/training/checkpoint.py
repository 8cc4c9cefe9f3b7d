"""Checkpoints: the full state of a training in one file, from which it resumes bit by bit.

The file is the same for every ZeRO stage: sharded weights and optimizer states are gathered first. Only rank 0 writes
and reads it; the others get what it reads through the process group.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rarec.errors import InputError
from rarec.training.engine import from_every_rank, from_rank_0, rank, worker_device, world_size

STATE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """How far a training has come.

    Attributes:
        history: One record per finished epoch.
        best: Weights after the best of these epochs.
        seconds: Time taken so far.
        step: Steps done in the current epoch; 0 between epochs.
        seen: Samples in these steps.
        sums: Sums of the loss and its parts over these steps, for each rank.
        total: Samples in all steps so far.
        train_seconds: Time that the current epoch's steps took.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    step: int = 0
    seen: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    total: int = 0
    train_seconds: float = 0.0


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients. The frozen model below an adapter is not saved."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def full_weights(engine: Any) -> dict[str, Tensor]:
    """Copies of the trained weights, gathered and in float32. Call it on all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param

    names = trained(engine.module)
    if not engine.zero_optimization():
        return {name: weight.detach().clone() for name, weight in names.items()}
    return {name: safe_get_full_fp32_param(weight).detach().clone() for name, weight in names.items()}


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replace the trained weights by full ones. The engine cannot use a sharded model afterwards."""
    names = _matching(model, weights)
    for name, parameter in names.items():
        parameter.data = weights[name].to(worker_device())


def save_state(
    folder: Path, engine: Any, random: Mapping[str, Tensor], state: TrainingState, accumulation: int = 1
) -> None:
    """Write a checkpoint. Call it on all ranks.

    The file is written under another name and renamed, so a crash leaves the last good one.

    Args:
        random: This rank's random states.
        accumulation: Number of pieces into which a rank's part of a step is cut.

    Raises:
        InputError: It cannot be written; the last checkpoint stays.
    """
    tensors = {f"model.{name}": weight for name, weight in full_weights(engine).items()}
    tensors |= {f"adam.{name}": value for name, value in _optimizer_state(engine).items()}
    tensors |= {f"best.{name}": weight for name, weight in state.best.items()}
    for number, states in enumerate(from_every_rank(dict(random))):
        tensors |= {f"random.{number}.{name}": value for name, value in states.items()}
    if rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{STATE}.new"
    scaler = engine.torch_autocast_z0_gradscaler
    record = {
        "history": state.history,
        "seconds": state.seconds,
        "step": state.step,
        "seen": state.seen,
        "sums": state.sums,
        "total": state.total,
        "train_seconds": state.train_seconds,
        "workers": _workers(engine, accumulation),
        "loss_scale": scaler.state_dict() if scaler else None,
    }
    try:
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            beside,
            metadata={"state": json.dumps(record)},
        )
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, folder / STATE)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise InputError(
            f"the checkpoint {folder / STATE} cannot be written: {error}; free disk space there and run again: "
            "training resumes from the previous checkpoint"
        ) from error


def restore_state(folder: Path, engine: Any, accumulation: int = 1) -> tuple[TrainingState, dict[str, Tensor]]:
    """Load the checkpoint in ``folder`` into the engine; return it with this rank's random states.

    Without a checkpoint the state is that of a training that has not begun.

    Raises:
        InputError: The checkpoint was written with another number of processes or pieces, device or precision.
    """
    found = from_rank_0(_read(folder, _workers(engine, accumulation)) if rank() == 0 else None)
    if found is None:
        return TrainingState(), {}
    record, tensors = found
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}, "random": {}}
    for name, value in tensors.items():
        group, rest = name.split(".", 1)
        groups[group][rest] = value
    _put(engine, groups["model"], groups["adam"])
    if record["loss_scale"]:
        engine.torch_autocast_z0_gradscaler.load_state_dict(record["loss_scale"])
    device = worker_device()
    own = f"{rank()}."
    state = TrainingState(
        record["history"],
        {name: value.to(device) for name, value in groups["best"].items()},
        *(record[name] for name in ("seconds", "step", "seen", "sums", "total", "train_seconds")),
    )
    return state, {name.removeprefix(own): v for name, v in groups["random"].items() if name.startswith(own)}


def _read(folder: Path, workers: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    file = folder / STATE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as reader:
            record = json.loads(reader.metadata()["state"])
        tensors = load_file(file)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        print(f"the checkpoint {file} is damaged ({error}); training starts over", flush=True)
        return None
    if record["workers"] != workers:
        raise InputError(
            f"the checkpoint {file} was written with {record['workers']}; resuming it with {workers} would give "
            "another result. Use the same number of processes, device, precision and accumulation, or start over with "
            "force"
        )
    return record, tensors


def _workers(engine: Any, accumulation: int) -> str:
    """What a training depends on besides its settings: dropout differs between ranks, pieces and devices."""
    dtype = engine.torch_autocast_dtype() if engine.torch_autocast_enabled() else torch.float32
    pieces = f", accumulation {accumulation}" if accumulation > 1 else ""
    return f"{world_size()} on {worker_device().type} in {str(dtype).removeprefix('torch.')}{pieces}"


def _optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Adam's moments of every weight, gathered, and its step count. Call it on all ranks."""
    from deepspeed.utils import safe_get_full_optimizer_state

    names = trained(engine.module)
    states = engine.optimizer.state if not engine.zero_optimization() else engine.optimizer.optimizer.state
    if not engine.zero_optimization():
        return {
            f"{key}.{name}": value for name, weight in names.items() for key, value in states.get(weight, {}).items()
        }
    found = {
        f"{key}.{name}": safe_get_full_optimizer_state(weight, key).detach().clone()
        for name, weight in names.items()
        for key in _MOMENTS
    }
    steps = {float(values["step"]) for values in states.values() if "step" in values}
    return {**found, **{f"step.{name}": torch.tensor(max(steps, default=0.0)) for name in names}}


def _put(engine: Any, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """Put full weights and moments into the engine, whichever way ZeRO shards them."""
    names = _matching(engine.module, weights)
    if not engine.zero_optimization():
        layout = engine.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for number, name in enumerate(names):
            for key in ("step", *_MOMENTS):
                if f"{key}.{name}" in optimizer:
                    state.setdefault(number, {})[key] = optimizer[f"{key}.{name}"]
        engine.optimizer.load_state_dict({"state": state, "param_groups": layout["param_groups"]})
        with torch.no_grad():
            for name, weight in names.items():
                weight.copy_(weights[name])
        return
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    device = worker_device()
    _begin_moments(engine, max((float(optimizer[f"step.{name}"]) for name in names), default=0.0))
    for name, weight in names.items():
        moments = {key: optimizer[f"{key}.{name}"].to(device) for key in _MOMENTS}
        if engine.zero_optimization_stage() == 3:
            _put_part(weight, weights[name].to(device), moments)
            continue
        with torch.no_grad():
            weight.copy_(weights[name])
        safe_set_full_fp32_param(weight, weights[name].to(device))
        for key, value in moments.items():
            safe_set_full_optimizer_state(weight, value, key)


def _begin_moments(engine: Any, step: float) -> None:
    """Create the moments of ZeRO's flat shards, which a new optimizer lacks before its first step."""
    zero = engine.optimizer
    third = engine.zero_optimization_stage() == 3
    for part in zero.fp32_partitioned_groups_flat if third else zero.single_partition_of_fp32_groups:
        zero.optimizer.state[part] = {
            "step": torch.tensor(step, device=part.device),
            **{key: torch.zeros_like(part) for key in _MOMENTS},
        }
    if not third:
        zero._lazy_init_hp_params_optimizer_state()


def _put_part(weight: Any, whole: Tensor, moments: Mapping[str, Tensor]) -> None:
    """ZeRO-3: set this rank's shard of a weight and its moments. DeepSpeed's own function fails on unequal shards."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = weight.ds_tensor.numel()

    def part(values: Tensor) -> Tensor:
        padded = values.new_zeros(size * world_size())
        padded[: values.numel()] = values.flatten()
        return padded[size * rank() : size * (rank() + 1)]

    safe_set_local_fp32_param(weight, part(whole))
    for key, value in moments.items():
        safe_set_local_optimizer_state(weight, part(value), key)
    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        if rank() == 0:
            weight.data.copy_(whole)


def _matching(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    names = trained(model)
    if names.keys() != weights.keys():
        raise ValueError(f"weights of {sorted(weights.keys() ^ names.keys())} are missing or too many")
    return names
