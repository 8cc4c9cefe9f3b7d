"""Why a training failed: which rank, what happened to it and its last output, as one Dagster failure."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from rarec.training.progress import duration
from resources.workers.heartbeat_monitor import Silence
from resources.workers.log_follower import OutputFollower

FULL_BYTES = 1 << 20  # a disk with less than this left counts as full
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
# Messages of a rank that lost its peer: a consequence, not the cause.
LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "distbackenderror", "distnetwork")


@dataclass(frozen=True)
class Ending:
    """How the launcher's wait ended."""

    exit_code: int | None = None  # of the agent that ended first
    timed_out_s: float = 0  # the time limit, if it was reached
    hung: tuple[Silence, ...] = ()
    heartbeat_s: float = 0


class Errors:
    """The `error` files of a training, in the order in which this process first saw them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, dict[str, Any]] = {}

    def look(self) -> bool:
        """Look for new files. Returns whether there is any file."""
        files = [path for path in self._folder.glob("error-*.json") if path not in self._seen]
        new = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in files]
        # Those seen together are ordered by the machine's monotonic clock, which setting the clock does not change.
        self._seen |= dict(sorted(new, key=lambda one: one[1]["time"]))
        return bool(self._seen)

    def cause(self) -> dict[str, Any] | None:
        """The error that explains the others; None if there is none."""
        return min(self._seen.values(), key=_is_consequence, default=None)


def _is_consequence(error: dict[str, Any]) -> int:
    if error.get("input_error"):
        return 0
    if error.get("signal"):
        # torchrun ends the other ranks with SIGTERM when one fails.
        return 4 if error["signal"] == "SIGTERM" else 1
    text = f"{error.get('type')} {error['message']}".lower()
    if any(sign in text for sign in LOST_PEER):
        return 3
    return 2


def full_disk(folder: Path) -> str:
    """A message if the disk of a working folder is full; empty if there is room."""
    free = shutil.disk_usage(folder).free
    if free >= FULL_BYTES:
        return ""
    return (
        f"the disk of the working folder {folder} is full ({free:,} bytes are left). Free some space and run again; "
        "the training resumes from its last checkpoint"
    )


def failure(ending: Ending, errors: Errors, output: OutputFollower, stacks: dict[int, str], folder: Path) -> dg.Failure:
    """The failure of the asset.

    Args:
        stacks: rank -> its stacks, if the ranks were asked for them.
        folder: the training's working folder.
    """
    errors.look()
    error = errors.cause()
    # On a full disk, ranks cannot write an error file, or blame whichever file they wrote next.
    if not (error and error.get("input_error")) and (full := full_disk(folder)):
        said = f"worker {error['rank']}: {error['message']}" if error else output.last_lines()
        return _failure(f"Training failed: {full}. Last output: {said}", ending.exit_code, output, allow_retries=False)
    if ending.hung:
        return _hung(ending, output, stacks)
    if ending.timed_out_s:
        text = f"Training was stopped after timeout_s = {ending.timed_out_s:g} s. Last lines:\n"
        return _failure(text + output.last_lines(0), ending.exit_code, output, allow_retries=False)
    if error is None:
        text = f"Training failed: exit code {ending.exit_code}. Last lines of {output.log_of()}:\n"
        return _failure(text + output.last_lines(), ending.exit_code, output)
    return _of_rank(error, output)


def _of_rank(error: dict[str, Any], output: OutputFollower) -> dg.Failure:
    rank, exit_code = error["rank"], error["exit_code"]
    if error.get("input_error"):
        return _failure(error["message"], exit_code, output, rank, allow_retries=False)
    who = f"Training worker {rank}" if isinstance(rank, int) else f"The process manager on {rank}"
    if error.get("type") in OUT_OF_MEMORY:
        text = f"{who} ran out of memory: {error['type']}: {error['message']}. Use smaller batches or more machines"
    elif "type" in error:
        text = f"{who} failed: {error['type']}: {error['message']}"
    else:
        text = f"{who} {error['message']}. Last lines of {output.log_of(rank)}:\n{output.last_lines(rank)}"
        return _failure(text, exit_code, output, rank)
    text += f" (exit code {exit_code}; full log {output.log_of(rank)})\n{error['traceback']}"
    return _failure(text, exit_code, output, rank)


def _hung(ending: Ending, output: OutputFollower, stacks: dict[int, str]) -> dg.Failure:
    lines = [
        f"Training worker {one.rank} hung: no sign of life for {duration(one.seconds)} (heartbeat_s = "
        f"{ending.heartbeat_s:g}). It last reported: {one.doing}"
        for one in ending.hung
    ]
    first = ending.hung[0].rank
    lines.append(f"Stack of worker {first}:\n{stacks.get(first) or '(it did not answer)'}")
    lines.append(f"Last lines of {output.log_of(first)}:\n{output.last_lines(first)}")
    return _failure("\n".join(lines), None, output, first)


def _failure(
    text: str,
    exit_code: int | None,
    output: OutputFollower,
    rank: int | str | None = None,
    allow_retries: bool = True,
) -> dg.Failure:
    metadata: dict[str, Any] = {
        "log": dg.MetadataValue.path(str(output.log_of(rank))),
        "last lines": output.last_lines(rank),
    }
    if exit_code is not None:
        metadata["exit code"] = exit_code
    return dg.Failure(text, metadata=metadata, allow_retries=allow_retries)
