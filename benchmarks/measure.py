"""What all benchmarks share: clocks, peak memory, the machine's facts, and training as a worker does it."""

import ctypes
import itertools
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import faiss
import torch
from torch import Tensor, nn

from rarec.training.engine import keep_freed_memory, peak_memory_mib
from rarec.training.fit import FitSettings, Objective, fit
from rarec.training.progress import LONE_WORKER, ReportProgress

# What the launcher sets for a lone worker on the CPU.
WORKER_ENVIRONMENT = {**LONE_WORKER, "DS_ACCELERATOR": "cpu"}  # on a GPU: "cuda"
_RESET_PEAK = "5"  # what `clear_refs` takes to forget the largest resident size (proc(5))

Column = dict[str, float | int | str]
Figures = dict[str, Column]
"""A benchmark's result: column (a workload or a size) to row to value."""
FAILED = "failed"
"""The row of a column that has no other, since what it measures failed: why."""


def become_worker(threads: int, device: Literal["cpu", "cuda"] = "cpu") -> None:
    """Set this process up like a training worker with ``threads`` threads; both sides of a comparison profit alike."""
    os.environ.update(WORKER_ENVIRONMENT | {"DS_ACCELERATOR": device})
    keep_freed_memory()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    import deepspeed  # noqa: F401  # here, so that no clock and no memory figure contains the import


def clock(function: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of ``rounds`` calls of every side, called in turn, so that a change of the machine's load meets all."""
    if warm_up:
        for function in sides.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            seconds[name].append(clock(function))
    return seconds


def timing(name: str, seconds: list[float]) -> Column:
    """Two rows: the median and the best round."""
    return {f"{name}, median": median(seconds), f"{name}, best": min(seconds)}


def ratio(plain: list[float], ours: list[float]) -> float:
    """How many times faster ours is, by medians."""
    return median(plain) / median(ours)


def peak_mib(function: Callable[[], Any]) -> float:
    """Memory in MiB that ``function`` needs at its peak beyond what the process held before; NaN outside Linux."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # `keep_freed_memory` keeps what earlier calls freed
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return float("nan")
    before = peak_memory_mib()
    function()
    return peak_memory_mib() - before


class Excerpt:
    """The first steps of every epoch of an objective; in the place of validation another side may have its turn."""

    def __init__(self, objective: Objective, steps: int | None, turn: Callable[[], None] = lambda: None):
        self.model: nn.Module = objective.model
        self.choice = objective.choice
        self.objective = objective
        self.steps = steps
        self.turn = turn
        self.samples: list[int] = []

    def start_epoch(self, epoch: int) -> int:
        """Begin an epoch of at most ``steps`` steps."""
        self.samples.append(0)
        steps = self.objective.start_epoch(epoch)
        return steps if self.steps is None else min(self.steps, steps)

    def batches(self, first: int = 0) -> Iterator[tuple[Any, int]]:
        """The first batches."""
        for batch, samples in itertools.islice(self.objective.batches(first), self.steps):
            self.samples[-1] += samples
            yield batch, samples

    def random_state(self) -> dict[str, Tensor]:
        """The objective's."""
        return self.objective.random_state()

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """The objective's."""
        self.objective.restore_random_state(state)

    def validate(self) -> dict[str, float]:
        """No validation: the other side's turn."""
        self.turn()
        return {self.choice or "": 0.0}


def silent(**_: Any) -> None:
    """A report to nobody."""


def train(
    objective: Objective,
    learning_rate: float,
    epochs: int,
    steps: int | None = None,
    turn: Callable[[], None] = lambda: None,
    report: ReportProgress = silent,
) -> tuple[list[float], dict[str, Any]]:
    """Train as a worker does, DeepSpeed engine, progress reports and checkpoints included.

    Returns:
        seconds a training sample of every epoch (validation and checkpoints not in them), and the summary of `fit`.
    """
    excerpt = Excerpt(objective, steps, turn)
    with tempfile.TemporaryDirectory() as folder:
        summary = fit(
            excerpt,
            FitSettings(learning_rate=learning_rate, epochs=epochs, patience=epochs),
            stage="benchmark",
            output=Path(folder),
            checkpoint=Path(folder),
            report=report,
        )
    seconds = [record["train_seconds"] for record in summary["history"]]
    return [s / samples for s, samples in zip(seconds, excerpt.samples, strict=True)], summary


def machine(threads: int) -> Column:
    """What the figures depend on: processor, threads, versions. No names of hosts or people."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "deepspeed", "numpy")},
        "faiss": faiss.__version__,
        "code": _code(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _code() -> str:
    """The commit measured, marked if files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=, changed since"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"
