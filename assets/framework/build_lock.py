"""One run at a time builds a model. A second run waits, then uses the first one's result or resumes where it failed.

Everything about a training is in its working folder: job, log, checkpoints and the lock.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from rarec.training.progress import progress_log

POLL_S = 1.0
REMINDER_S = 300.0


@contextmanager
def build_lock(context: dg.AssetExecutionContext, workdir: Path) -> Iterator[None]:
    """Wait until no other run works in this folder, and keep others out while the block lasts.

    The system releases the lock when the process dies, however it dies.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a+") as lock:
        told_at = -float("inf")
        while not _locked(lock.fileno()):
            if time.monotonic() - told_at >= REMINDER_S:
                told_at = time.monotonic()
                lock.seek(0)
                text = f"run {lock.read().strip() or 'unknown'} is building this artifact in {workdir}; waiting for it"
                context.log.info(text)
                progress_log.info("%s", f"{context.asset_key.to_user_string()}: {text}")
            time.sleep(POLL_S)
        lock.truncate(0)
        lock.write(context.run.run_id)
        lock.flush()
        yield  # closing the file releases the lock


def forget_checkpoints(workdir: Path) -> None:
    """Remove the checkpoints; call it while you hold the lock."""
    for checkpoint in list(workdir.glob("**/checkpoint")):
        shutil.rmtree(checkpoint, ignore_errors=True)


def forget_idle_checkpoints(workdir: Path) -> None:
    """Remove the checkpoints, unless another run works with them."""
    if any(workdir.glob("**/checkpoint")):
        with (workdir / "lock").open("a+") as lock:
            if _locked(lock.fileno()):
                forget_checkpoints(workdir)


def is_busy(workdir: Path) -> bool:
    """Whether a run works in this folder."""
    lock = workdir / "lock"
    if not lock.exists():
        return False
    with lock.open("a+") as stream:
        return not _locked(stream.fileno())


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
