"""`python -m benchmarks.sweep`: stage 2 of RaSeRec under several settings, compared on validation figures only.

It takes the folders of three artifacts (their paths stand in Dagster's metadata) and one JSON object of changed
settings per run; `{}` is the paper's.
"""

import json
import os
import shlex
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer


def main(
    changes: Annotated[list[str], typer.Argument(help='Settings that differ from the paper\'s: {"alpha": 0.7}.')],
    sequences: Annotated[Path, typer.Option(help="Artifact of user_sequences.")],
    encoder: Annotated[Path, typer.Option(help="Artifact of raserec_pretrained.")],
    bank: Annotated[Path, typer.Option(help="Artifact of memory_bank.")],
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 means one a core.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write command, machine and table to this Markdown file.")] = None,
) -> None:
    """Train stage 2 once for each set of changes; print best epoch and validation figures of each."""
    threads = threads or os.cpu_count() or 1
    # Before NumPy, PyTorch and Faiss are imported.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from benchmarks.measure import become_worker, machine, silent
    from rarec.data.sequences import UserSequences
    from rarec.raserec.encoders import load_encoder
    from rarec.raserec.finetune import finetune
    from rarec.raserec.settings import FinetuneSettings
    from rarec.retrieval.memory import MemoryBank

    become_worker(threads)
    runs = [FinetuneSettings(**json.loads(change)) for change in changes]  # all refused or none begun
    data, memory = UserSequences.load(sequences), MemoryBank.load(bank)
    memory.require_encoder(encoder.resolve().name)  # an artifact's folder is called by its fingerprint
    options = {"sequences": sequences, "encoder": encoder, "bank": bank, "threads": threads}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    facts = ", ".join(f"{name} {value}" for name, value in machine(threads).items())
    page = [
        f"    {shlex.join(['python', '-m', 'benchmarks.sweep', *changes, *flags])}",
        f"Measured {datetime.now(UTC):%Y-%m-%d} on: {facts}.",
        "| settings | epochs (best) | HR@10 | NDCG@10 | masked HR@10 | masked NDCG@10 | s |\n" + "|---" * 7 + "|",
    ]
    print(page[-1], flush=True)
    for change, settings in zip(changes, runs, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            frozen = load_encoder(encoder, data.n_items)
            summary = finetune(data, frozen, memory, settings, Path(folder), Path(folder) / "checkpoint", silent)
        best = summary["history"][summary["best_epoch"]]
        figures = (best[name] for name in ("HR@10", "NDCG@10", "masked_HR@10", "masked_NDCG@10"))
        cells = [change, f"{len(summary['history'])} ({summary['best_epoch'] + 1})", *(f"{f:.5f}" for f in figures)]
        row = f"| {' | '.join(cells)} | {summary['seconds']:.0f} |"
        page[-1] += "\n" + row
        print(row, flush=True)
        if output:  # after every run, so that an interrupt costs one
            output.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    typer.run(main)
