"""What assets that train share: how a worker is run, what is retried, what a training tells of itself."""

import functools
import json
import logging
import multiprocessing
import os
import signal
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pandas as pd

from assets.framework.stage import Outcome, markdown_table, training_progress
from rarec.errors import one_line
from rarec.training.fit import HISTORY, SUMMARY
from resources.mlflow.tracked_run import TrackedRun
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

F = TypeVar("F", bound=Callable[..., Any])

# A worker killed, memory short for a moment, a connection lost: tried again after 5, 15 and 35 seconds, from the
# checkpoint. Bad input is a Failure without retries (`refuse_bad_input`).
RETRIES = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL)
WATCH = "run-watch"
progress_log = logging.getLogger("rarec.progress")  # `make run` shows it in the terminal


class Cancelled(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """A cancel or Ctrl-C. Dagster's own exception would be retried where there is a retry policy; its errors never."""


def cancellable(asset: F) -> F:
    """For assets with `RETRIES`: a cancel ends them for good, and the terminal hears of what is tried again.

    So does kill -9 of the run's process: Dagster holds the run for failed and lets its step train on.
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
                progress_log.info("%s", f"{name}: failed, tried again in {delay:.0f} s: {one_line(error)}")
            raise

    return typing.cast(F, wrapper)


def _end_with_run() -> None:
    """Cancel this process, if it was started for one step, when the process of its run is gone."""
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
    folders: Folders,
    run: TrackedRun,
    module: str,
    job: Mapping[str, object],
    output: Path,
    variant: str = "",
) -> dict[str, Any]:
    """Run a training worker that writes into ``output``; its summary (`rarec.training.fit`), progress going to ``run``.

    A checkpoint that is there is gone on from. ``variant`` names one of several trainings for the same artifact.
    """
    workdir = folders.workdir(context.asset_key.to_user_string(), run.fingerprint) / variant
    checkpoint = workdir / "checkpoint"
    job = {**job, "output": str(output), "checkpoint": str(checkpoint)}
    launcher.launch(context, module, job, workdir, training_progress(run))
    summary: dict[str, Any] = json.loads((checkpoint / SUMMARY).read_text())
    return summary


def run_worker(
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
    folders: Folders,
    run: TrackedRun,
    module: str,
    job: Mapping[str, object],
) -> None:
    """Run a worker in the working folder of ``run``'s artifact; it gets a ``checkpoint`` folder and may use it."""
    workdir = folders.workdir(context.asset_key.to_user_string(), run.fingerprint)
    job = {**job, "checkpoint": str(workdir / "checkpoint")}
    launcher.launch(context, module, job, workdir, training_progress(run))


def training_outcome(
    run: TrackedRun, summary: Mapping[str, Any], figures: Sequence[str], shown: Sequence[str]
) -> Outcome:
    """What a training tells in metadata and MLflow.

    Args:
        figures: validation figures of the best epoch.
        shown: columns of the history's table.
    """
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
    """What the training took, as far as its worker told: the memory is that of the rank that took most."""
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


def pinned(*names: str) -> list[str]:
    """Pip requirements of the versions in use, without local tags such as +cpu; absent ones (faiss-gpu's) unpinned."""
    found = {name: _version(name) for name in names}
    return [f"{name}=={version.split('+')[0]}" if version else name for name, version in found.items()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
