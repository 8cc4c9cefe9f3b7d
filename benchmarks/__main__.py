"""`python -m benchmarks`: run benchmarks, print their tables, and keep them on request."""

import os
import shlex
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA = Path("../shared/datasets")
RESULTS = Path(__file__).parent / "results"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks to run; all without a name.")] = None,
    data: Annotated[
        Path,
        typer.Option(
            envvar="RAREC_DATA", help="Folder of data sets; without amazon-beauty and ml-100k in it only synthetic."
        ),
    ] = DEFAULT_DATA,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 means one a core.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a round of the plain side.")] = 10,
    our_steps: Annotated[int, typer.Option(min=1, help="Training steps a round of our side.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 3,
    interactions: Annotated[
        int | None, typer.Option(min=2000, help="Interactions of ctr_scale and tables; MovieLens-25M's without it.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write all results as JSON here, and as .md beside it.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write benchmarks/results/<name>.json and .md.")] = False,
) -> None:
    """Measure our speed against a plain implementation, and how our cost grows. On the CPU."""
    threads = threads or os.cpu_count() or 1
    # Before NumPy, PyTorch and Faiss are imported.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of tokenizers
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from benchmarks.measure import become_worker, machine
    from benchmarks.registry import BENCHMARKS, ON_FILMS, ON_SEQUENCES
    from benchmarks.report import table, write
    from benchmarks.workloads import REAL, REAL_FILMS, Effort, Setup, all_films, workloads
    from rarec.errors import InputError

    chosen = names or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise SystemExit(f"error: unknown benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}")
    effort = Effort(plain_steps=steps, our_steps=our_steps, rounds=rounds)
    if interactions:
        effort = replace(effort, ctr_interactions=interactions)
    on_sequences, on_films = (any(name in some for name in chosen) for some in (ON_SEQUENCES, ON_FILMS))
    try:
        setup = Setup(workloads(data) if on_sequences else {}, effort, all_films(data) if on_films else {})
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    if on_sequences and REAL not in setup.workloads:
        print(f"no folder {REAL} in {data}: synthetic sequences only (set RAREC_DATA or --data)")
    if on_films and REAL_FILMS not in setup.films:
        print(f"no folder {REAL_FILMS} in {data}: synthetic films only (set RAREC_DATA or --data)")
    become_worker(threads)
    options = {"data": os.path.relpath(data), "threads": threads, "steps": steps}
    options |= {"our-steps": our_steps, "rounds": rounds}
    options |= {"interactions": interactions} if interactions else {}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    facts = machine(threads)
    results = {}
    for name in chosen:
        print(f"\n{name} ...", flush=True)
        results[name] = BENCHMARKS[name](setup)
        print(table(results[name]), flush=True)
        about = (facts, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), asdict(effort))
        if record:
            command = shlex.join(["python", "-m", "benchmarks", name, *flags, "--record"])
            write(RESULTS / name, {name: results[name]}, command, *about)
        if output:
            command = shlex.join(["python", "-m", "benchmarks", *chosen, *flags, "--output", output.name])
            write(output.with_suffix(""), results, command, *about)


if __name__ == "__main__":
    typer.run(main)
