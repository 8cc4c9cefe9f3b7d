"""The DeepSpeed engine of a training worker, and collectives that keep results independent of the world size."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from rarec.training.engine_settings import EngineSettings
from rarec.training.progress import LONE_WORKER
from rarec.types import IntArray

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 32 MiB instead of returning them to the system.

    Every training step allocates the same large tensors. Faulting their pages in again doubles the step time of a small
    model. Does nothing if the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_TOP_PAD, 64 << 20)


def return_freed_memory() -> None:
    """Return what `keep_freed_memory` made glibc keep: batches of ever new shapes would fragment it without bound."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def worker_device() -> torch.device:
    """This rank's device: its GPU if the launcher chose CUDA, else the CPU."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of both papers."""
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True)


def join_group(device: torch.device) -> None:
    """Join the process group of all workers, unless that is done."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in LONE_WORKER.items():  # outside the launcher nobody else sets it
        os.environ.setdefault(name, value)
    import deepspeed  # takes seconds, and only training workers need it

    # The shared-memory all-reduce is compiled on first use; gloo needs no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        deepspeed.init_distributed()


def initialise_engine(
    model: nn.Module,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    settings: EngineSettings,
    device: torch.device,
    *,
    clip: float = 0.0,
) -> Any:
    """A DeepSpeed engine around ``model``, which averages gradients over ranks.

    The caller normalises its loss over the global batch and multiplies it by the world size, so that the average over
    ranks is the gradient of the global mean.

    Args:
        optimizer: Makes the optimizer for the parameters that are trained.
        clip: Largest norm of a step's gradient; 0 means no limit.
    """
    join_group(device)
    import deepspeed

    parameters = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model.to(device), optimizer=optimizer(parameters), config=settings.configuration(device.type, clip)
    )
    if world_size() == 1 and settings.stage == 0:
        engine.enable_backward_allreduce = False  # a lone rank would copy every gradient twice for nothing
    return engine


def is_sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has sharded the weights, so that this process holds only part of them."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextlib.contextmanager
def gathered(parameter: Tensor) -> Iterator[Tensor]:
    """The whole parameter on every rank, inside the block, even if ZeRO-3 has sharded it."""
    if not hasattr(parameter, "ds_id"):
        yield parameter
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield parameter


def rank() -> int:
    """Rank of this worker; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of workers; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all ranks; no gradient."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def from_rank_0(value: T) -> T:
    """Rank 0's ``value`` on every rank, so that all of them decide alike."""
    if world_size() > 1:
        box = [value]
        dist.broadcast_object_list(box, device=worker_device())
        return box[0]
    return value


def from_every_rank(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def shard(rows: IntArray) -> IntArray:
    """This rank's part of ``rows``: every world-size-th one. `unshard` puts the ranks' results together."""
    return rows[rank() :: world_size()]


def unshard(parts: Tensor, count: int) -> Tensor:
    """The (count, ...) results of all ranks, in the order of the rows that `shard` cut; on every rank."""
    if world_size() == 1:
        return parts
    together = parts.new_empty(count, *parts.shape[1:])
    for number, part in enumerate(from_every_rank(parts.cpu())):
        together[number :: world_size()] = part.to(together.device)
    return together


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = [int(count) for count in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        ctx.start, ctx.count = sum(sizes[: rank()]), len(rows)  # type: ignore[attr-defined]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.count]  # type: ignore[attr-defined]


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """All ranks' rows in rank order, differentiable, and the index of this rank's first row among them."""
    if world_size() == 1:
        return rows, 0
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    together: Tensor = _GatherRows.apply(rows)
    return together, int(all_sum(counts)[: rank()].sum())


def peak_memory_mib() -> float:
    """Peak resident size of this process in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")
