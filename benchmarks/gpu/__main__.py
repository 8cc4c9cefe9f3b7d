"""`python -m benchmarks.gpu <part>`: what a GPU does; docs/gpu.md has the parts in order and how long they take.

Every part prints its table as it grows and keeps `gpu-<part>.json` and `.md` after each of its cases, so that what was
measured stays where a case fails or time runs out. Cases run in processes of their own: one that runs out of memory
takes nothing with it. Without a GPU the command says so and ends with code 2; tests/benchmarks/test_gpu.py runs every
part on the CPU in small shapes.
"""

import itertools
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.gpu import llama, raserec
from benchmarks.gpu.llama import SHAPES, LlamaEffort, LlamaShape
from benchmarks.measure import FAILED, Column, Figures, become_worker, machine
from benchmarks.report import table, write
from benchmarks.workloads import REAL, amazon_beauty
from rarec.data.sequences import UserSequences
from rarec.errors import InputError, one_line
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.training.engine import worker_device
from rarec.training.engine_settings import Precision

RESULTS = Path(__file__).parents[1] / "results"
NO_GPU_EXIT = 2
Case = Callable[[], Column]
RATE = "measured bf16 rate, TFLOP/s"


class Part(StrEnum):
    """What can be measured."""

    matmul = "matmul"
    tuning_7b = "tuning-7b"
    tuning_13b = "tuning-13b"
    scoring = "scoring"
    bank = "bank"
    engines = "engines"
    beauty = "beauty"


@dataclass(frozen=True)
class GpuEffort:
    """What is measured, and how much of it."""

    products: tuple[int, ...] = (8192, 16_384)
    """Sizes of the square products that give the chip's rate."""
    repeats: int = 10
    """Products a round."""
    rounds: int = 5
    """Measured rounds of products and searches."""
    shapes: tuple[tuple[str, LlamaShape], ...] = tuple(SHAPES.items())
    lengths: tuple[int, ...] = (700, 2000)
    """Tokens of prompts."""
    zero_stages: tuple[int, ...] = (2, 3)
    """Of the tunings."""
    llama: LlamaEffort = field(default_factory=LlamaEffort)
    banks: tuple[tuple[int, int], ...] = ((131_413, 64), (1_000_000, 64))
    """Memories and width: Amazon Beauty's, MovieLens-1M's."""
    few_queries: int = 4096
    """Queries that Faiss answers on the CPU."""
    engines: tuple[tuple[int, Precision], ...] = (
        (0, "fp32"), (0, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"),
    )  # fmt: skip
    stage1: PretrainSettings = field(default_factory=lambda: PretrainSettings(epochs=4, patience=4))
    """The paper's, but for the epochs."""
    stage2: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(epochs=4, patience=4))


ABOUT = {
    Part.matmul: "Square bf16 matrix products of random numbers: the yardstick of the other parts, which measure it "
    "again. Median round.",
    **dict.fromkeys(
        (Part.tuning_7b, Part.tuning_13b),
        "LoRA tuning (q_proj and v_proj, rank 8) of a Llama of this size with random bf16 weights, through "
        "`TuningObjective` and `fit`, bf16, DeepSpeed. Pieces are as large as memory holds; gradient checkpointing "
        "only where not even one prompt fits. " + (llama.__doc__ or "").split("\n\n", 1)[1].strip(),
    ),
    Part.scoring: "`score` at its default batches (16,384 tokens), with and without a LoRA adapter. "
    + (llama.__doc__ or "").split("\n\n", 1)[1].strip(),
    Part.bank: "Exact search in memory banks of random directions, float32. Equal lists: against Faiss on the CPU; "
    "others are equally similar up to rounding.",
    Part.engines: "Four epochs of each RaSeRec stage with the paper's settings under several DeepSpeed engines; the "
    "first epoch warms up.",
    Part.beauty: "Whole runs through `pipelines.run`, the paper's settings, one seed for both stages; test split.",
}


def yardstick(effort: GpuEffort) -> Column:
    """The chip's bf16 rate in TFLOP/s: of square products of every size, and of the best size, in the median round."""
    device = worker_device()
    generator = torch.Generator(device).manual_seed(0)
    rates: Column = {}
    for size in effort.products:
        a, b = (torch.randn(size, size, generator=generator, device=device).bfloat16() for _ in range(2))
        result = torch.empty_like(a)
        seconds = []
        for _ in range(effort.rounds + 1):
            _wait(device)
            started = time.perf_counter()
            for _ in range(effort.repeats):
                torch.mm(a, b, out=result)
            _wait(device)
            seconds.append((time.perf_counter() - started) / effort.repeats)
        rates[f"{size} x {size}, TFLOP/s"] = 2 * size**3 / median(seconds[1:]) / 1e12  # the first round warms up
    return {**rates, RATE: max(rates.values())}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cases_of(part: Part, effort: GpuEffort, rate: float, sequences: Path) -> Iterator[tuple[str, Case]]:
    """Titles and cases of a part; ``rate``: the chip's, in FLOP/s; ``sequences``: a folder that holds some."""
    if part is Part.bank:
        for memories, dim in effort.banks:
            few = min(effort.few_queries, memories)
            yield f"{memories:,} memories", partial(raserec.bank_case, memories, dim, few, effort.rounds)
    if part is Part.engines:
        for stage, precision in effort.engines:
            yield (
                f"ZeRO-{stage}, {precision}",
                partial(raserec.engine_case, sequences, effort.stage1, effort.stage2, stage, precision),
            )
    for (name, shape), length in itertools.product(effort.shapes, effort.lengths):
        title = f"{name}, {length} tokens"
        if part is Part.scoring:
            yield title, partial(llama.scoring_case, shape, length, rate, effort.llama)
        if part == f"tuning-{name.lower()}":
            for stage in effort.zero_stages:
                yield f"{title}, ZeRO-{stage}", partial(llama.tuning_case, shape, stage, length, rate, effort.llama)


def measure(
    part: Part,
    effort: GpuEffort,
    isolate: Callable[[Case], Column],
    keep: Callable[[Figures], None],
    sequences: Callable[[], UserSequences],
) -> Figures:
    """All figures of a part but `Part.beauty`.

    Args:
        isolate: runs a case, in a process of its own or here.
        keep: is given all figures so far after each case.
        sequences: reads what `Part.engines` trains on.
    """
    figures: Figures = {}
    rate = float("nan")
    if part not in (Part.bank, Part.engines):
        figures["chip"] = isolate(partial(yardstick, effort))
        rate = float(figures["chip"][RATE]) * 1e12
        keep(figures)
    with TemporaryDirectory() as folder:
        if part is Part.engines:
            sequences().save(Path(folder))
        for title, case in cases_of(part, effort, rate, Path(folder)):
            try:
                figures[title] = isolate(case)
            except Exception as error:  # the other cases still count
                figures[title] = {FAILED: one_line(error)[:200]}
            keep(figures)
    return figures


def in_own_process(case: Case, threads: int, device: Literal["cpu", "cuda"]) -> Column:
    """The case's column, from a process that ends with it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, partial(become_worker, threads, device)) as pool:
        return pool.submit(case).result()


def gpu_facts() -> Column:
    """What the figures depend on beside `machine`."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "GPU": properties.name,
        "GPUs": torch.cuda.device_count(),
        "GPU memory, GiB": round(properties.total_memory / 2**30, 1),
        "compute capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(
    part: Annotated[Part, typer.Argument(help="What to measure.")],
    data: Annotated[
        Path, typer.Option(envvar="RAREC_DATA", help="Folder of data sets, for engines and beauty.")
    ] = Path("../shared/datasets"),
    seeds: Annotated[str, typer.Option(help="Of beauty, separated by commas.")] = "42,43,44,45,46",
    together: Annotated[int, typer.Option(min=1, help="Runs of beauty at once; 1 for seconds an epoch.")] = 1,
    homes: Annotated[Path | None, typer.Option(help="Where beauty's runs keep everything; a temporary folder.")] = None,
    output: Annotated[Path, typer.Option(help="Folder that gets gpu-<part>.json and .md.")] = RESULTS,
    code: Annotated[str, typer.Option(help="The commit measured, where git cannot tell.")] = "",
) -> None:
    """Measure one part on this machine's GPU."""
    if not torch.cuda.is_available():
        print("error: this machine has no GPU that PyTorch can use; see docs/gpu.md", file=sys.stderr)
        raise SystemExit(NO_GPU_EXIT)
    threads = os.cpu_count() or 1
    effort = GpuEffort()
    facts = machine(threads) | gpu_facts() | ({"code": code} if code else {})
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    name = f"gpu-{part}"

    def keep(figures: Figures) -> None:
        print(table(figures), flush=True)
        about = {name: ABOUT[part]}
        measured = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write(output / name, {name: figures}, command, facts, measured, plain_effort(effort), about)

    try:
        if part is Part.beauty:
            numbers = [int(seed) for seed in seeds.split(",")]
            name += "".join(f"-{number}" for number in numbers)
            with TemporaryDirectory() as temporary:
                run = raserec.Run(data.resolve())
                figures = raserec.whole_runs(run, numbers, together, homes or Path(temporary), keep)
        else:

            def isolate(case: Case) -> Column:
                return in_own_process(case, threads, "cuda")

            figures = measure(part, effort, isolate, keep, partial(amazon_beauty, data))
    except InputError as error:
        raise SystemExit(f"error: {error} (--data is {data}; it needs {REAL})") from error
    if failed := [title for title, column in figures.items() if FAILED in column]:
        raise SystemExit(f"error: {len(failed)} of {len(figures)} cases failed: {', '.join(failed)}")


def plain_effort(effort: GpuEffort) -> dict[str, Any]:
    """The effort as JSON knows it."""
    record = asdict(effort)
    return record | {name: getattr(effort, name).model_dump(mode="json") for name in ("stage1", "stage2")}


if __name__ == "__main__":
    typer.run(main)
