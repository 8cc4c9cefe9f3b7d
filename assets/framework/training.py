"""What training stages share: running a worker, retries, and what a training reports."""

import functools
import json
import multiprocessing
import os
import signal
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pandas as pd

from assets.framework.reuse import Outcome, markdown_table
from rarec.errors import one_line
from rarec.training.fit import HISTORY, SUMMARY
from rarec.training.job import WorkerJob
from rarec.training.progress import progress_log
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.training_progress import training_progress
from resources.workers.launcher import TrainingLauncher

F = TypeVar("F", bound=Callable[..., Any])

# Transient failures (a killed worker, memory pressure, a lost connection) are retried after 5, 15 and 35 seconds, from
# the checkpoint. Bad input is a Failure without retries (`refuse_bad_input`).
RETRIES = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL)
WATCH = "run-watch"


class Cancelled(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """A cancel or Ctrl-C. Dagster would retry its own interrupt under a retry policy, but never one of its errors."""


def cancellable(asset: F) -> F:
    """For assets with `RETRIES`: cancellation ends them without a retry, and the terminal shows each retry.

    They also end when the run's process is killed: Dagster marks the run as failed, but its step would go on training.
    """

    @functools.wraps(asset)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _end_with_run()
        try:
            return asset(*args, **kwargs)
        except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
            raise Cancelled("cancelled") from interrupt
        except Exception as error:
            context = dg.AssetExecutionContext.get()
            attempt = context.retry_number + 1
            if attempt <= RETRIES.max_retries and getattr(error, "allow_retries", True):
                name, delay = context.asset_key.to_user_string(), RETRIES.calculate_delay(attempt)
                progress_log.info("%s", f"{name}: failed, next attempt in {delay:.0f} s: {one_line(error)}")
            raise

    return typing.cast(F, wrapper)


def _end_with_run() -> None:
    """If this process runs a single step, cancel it when its run's process is gone."""
    run = multiprocessing.parent_process()
    if run is None or any(thread.name == WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        run.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=WATCH, daemon=True).start()


def train(
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
    workdir: Path,
    run: TrackedRun,
    job: WorkerJob,
    output: Path,
) -> dict[str, Any] | None:
    """Run a worker that writes into ``output``; its summary (`rarec.training.fit`), if it leaves one.

    Progress goes to ``run``. An existing checkpoint in ``workdir`` is used.
    """
    checkpoint = workdir / "checkpoint"
    launcher.launch(context, job, output, checkpoint, workdir, training_progress(run))
    summary = checkpoint / SUMMARY
    return json.loads(summary.read_text()) if summary.is_file() else None


def training_outcome(
    run: TrackedRun, summary: Mapping[str, Any] | None, figures: Sequence[str], shown: Sequence[str]
) -> Outcome:
    """What a training reports in metadata and MLflow.

    Args:
        figures: validation figures of the best epoch.
        shown: columns of the history's table.
    """
    if summary is None:
        raise RuntimeError("the training worker ended without writing a summary next to its checkpoint")
    history = pd.DataFrame(summary["history"])
    best = history.iloc[summary["best_epoch"]]
    effort = _effort(summary, history)
    values = {
        "epochs": len(history),
        "best_epoch": int(best["epoch"]),
        **{name: round(value, 1) for name, value in effort.items()},
        "world_size": summary["world_size"],
        **{f"validation {name}": float(best[name]) for name in figures},
    }
    run.log_table(history, HISTORY)
    measured = [name for name in history.columns if name not in ("epoch", "loss") and not name.endswith("seconds")]
    metrics = {f"best_{name}": float(best[name]) for name in measured}
    metrics |= {"best_epoch": float(best["epoch"]), **effort}
    markdown = {"history": markdown_table(history[["epoch", "loss", *shown, "train_seconds"]].round(4))}
    if ranks := summary.get("ranks"):
        markdown["ranks"] = markdown_table(pd.DataFrame(ranks).round(1))
    return Outcome(values, markdown, metrics)


def _effort(summary: Mapping[str, Any], history: pd.DataFrame) -> dict[str, float]:
    """Time, memory and pace of the training, as far as its worker recorded them; memory is the highest of any rank."""
    effort = {"seconds": float(summary["seconds"]), "peak_memory_mib": float(summary["peak_memory_mib"])}
    for unit in ("samples", "tokens"):
        if unit in summary:
            effort[unit] = float(summary[unit])
            effort[f"{unit}_per_s"] = effort[unit] / float(history["train_seconds"].sum())
    gpu = [rank for rank in summary.get("ranks", []) if "gpu_seconds" in rank]
    if gpu:
        effort["gpu_seconds"] = float(sum(rank["gpu_seconds"] for rank in gpu))
        effort["gpu_peak_memory_mib"] = float(max(rank.get("gpu_peak_memory_mib", 0) for rank in gpu))
    return effort
