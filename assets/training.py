"""What assets that train share: one worker at a time in its own folder, keyed by fingerprint, so that it resumes."""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.stage import Outcome, markdown_table, training_progress
from rarec.errors import InputError
from rarec.training.fit import HISTORY, SUMMARY
from resources.artifacts import Artifact
from resources.folders import Folders
from resources.launcher import TrainingLauncher
from resources.tracking import TrackedRun


def train(
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
    folders: Folders,
    run: TrackedRun,
    fingerprint: str,
    module: str,
    job: Mapping[str, object],
    output: Path,
    force: bool,
    variant: str = "",
) -> dict[str, Any]:
    """Run a training worker that writes into ``output``; its summary (`rarec.training.fit`), progress going to ``run``.

    Args:
        fingerprint: of the asset being made; with ``variant`` it names the working folder.
        force: start from the beginning, whatever checkpoint there is.
    """
    workdir = _workdir(context, folders, fingerprint) / variant
    checkpoint = workdir / "checkpoint"
    job = {**job, "output": str(output), "checkpoint": str(checkpoint)}
    with _sole_use_of(workdir):
        if force:
            shutil.rmtree(checkpoint, ignore_errors=True)
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
    """Run a worker without checkpoints, in the working folder of ``run``'s artifact."""
    workdir = _workdir(context, folders, run.fingerprint)
    with _sole_use_of(workdir):
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
    values = {
        "epochs": len(history),
        "best_epoch": int(best["epoch"]),
        "seconds": round(summary["seconds"], 1),
        "peak_memory_mib": round(summary["peak_memory_mib"]),
        "world_size": summary["world_size"],
        **{f"validation {name}": float(best[name]) for name in figures},
    }
    run.log_table(history, HISTORY)
    measured = [name for name in history.columns if name not in ("epoch", "loss") and not name.endswith("seconds")]
    metrics = {f"best_{name}": float(best[name]) for name in measured}
    metrics |= {"best_epoch": float(best["epoch"]), "seconds": float(summary["seconds"])}
    table = history[["epoch", "loss", *shown, "train_seconds"]].round(4)
    return Outcome(values, {"history": markdown_table(table)}, metrics)


def forget_checkpoint(context: dg.AssetExecutionContext, folders: Folders, artifact: Artifact) -> None:
    """Remove the checkpoints, now that the artifact is stored; earlier, a full disk would cost the training."""
    workdir = _workdir(context, folders, artifact.fingerprint)
    for checkpoint in sorted(workdir.glob("**/checkpoint")):
        with _alone_in(checkpoint.parent) as alone:
            if alone:
                shutil.rmtree(checkpoint, ignore_errors=True)


def pinned(*names: str) -> list[str]:
    """Pip requirements of the versions in use, without local tags such as +cpu; absent ones (faiss-gpu's) unpinned."""
    found = {name: _version(name) for name in names}
    return [f"{name}=={version.split('+')[0]}" if version else name for name, version in found.items()]


def _workdir(context: dg.AssetExecutionContext, folders: Folders, fingerprint: str) -> Path:
    """Where this training works. Keyed by fingerprint: asked for again after a crash, it resumes."""
    return Path(folders.work) / context.asset_key.to_user_string() / fingerprint


@contextmanager
def _sole_use_of(workdir: Path) -> Iterator[None]:
    with _alone_in(workdir) as alone:
        if not alone:
            raise InputError(
                f"another run is training this very model in {workdir}; wait for it, then run again: what it has "
                "trained is used"
            )
        yield


@contextmanager
def _alone_in(workdir: Path) -> Iterator[bool]:
    """Whether no other run works in this folder; while the block lasts none will."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True  # closing the file gives the lock back


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
