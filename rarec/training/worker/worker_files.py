"""Files in a training's working folder through which ranks, on any machine, tell the launcher how they are doing.

`alive-<rank>`       number and text of the rank's latest report, or `ENDED`; see `Heartbeat`
`error-<rank>.json`  why the rank ended (`error-node-<name>.json`: why the agent of a machine ended)
`stacks-<rank>.txt`  its Python stacks when the launcher asked for them
`log-<rank>.txt`     its output, if there are several ranks
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

ENDED = "ended"
BEAT_INTERVAL_S = 1.0
CONTAINER_EVENTS = Path("/sys/fs/cgroup/memory.events")
MACHINE_EVENTS = Path("/proc/vmstat")


def alive_file(folder: Path, rank: int) -> Path:
    """Its changes show that a rank is alive."""
    return folder / f"alive-{rank}"


def stacks_file(folder: Path, rank: int) -> Path:
    """A rank's Python stacks, written on SIGUSR1."""
    return folder / f"stacks-{rank}.txt"


def log_file(folder: Path, rank: int) -> Path:
    """Output of one of several ranks; each attempt appends to it."""
    return folder / f"log-{rank}.txt"


def clear_signs(folder: Path, rank: int | None = None) -> None:
    """Remove what an earlier attempt left behind, for one rank or for all."""
    which = "*" if rank is None else str(rank)
    for pattern in (f"alive-{which}", f"error-{which}.json", f"stacks-{which}.txt"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


class Heartbeat:
    """Writes a rank's latest report to its `alive` file: forced reports, and one of the others per second.

    It beats when the training loop reports. A thread of its own would go on beating when the loop hangs.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = alive_file(folder, rank)
        self._count = 0
        self._beat_at = -float("inf")

    def is_due(self) -> bool:
        """Whether a second has passed since the last beat."""
        return time.monotonic() - self._beat_at >= BEAT_INTERVAL_S

    def beat(self, doing: str) -> None:
        """Show that the rank is alive. If the file cannot be written, because the disk is full, training goes on."""
        self._beat_at = time.monotonic()
        self._count += 1  # so that beats differ, whatever the clock says
        with contextlib.suppress(OSError):
            beside = self._path.with_name(self._path.name + ".new")
            beside.write_text(f"{self._count} {doing}", encoding="utf-8")
            os.replace(beside, self._path)
            return
        with contextlib.suppress(OSError):
            os.utime(self._path)  # also a change, and needs no space

    def end(self) -> None:
        """Mark this rank as done, so that its silence no longer counts."""
        self.beat(ENDED)


def leave_error(folder: Path, rank: int | str, *, message: str, exit_code: int, **details: Any) -> None:
    """Record why a rank ended. A monotonic time puts the errors of one machine in order."""
    report = {"rank": rank, "message": message, "exit_code": exit_code, "time": time.monotonic(), **details}
    target = folder / f"error-{rank}.json"
    beside = target.with_suffix(".new")
    beside.write_text(json.dumps(report), encoding="utf-8")
    os.replace(beside, target)


def leave_ended(folder: Path, rank: int | str, exit_code: int, memory_ran_out: bool) -> None:
    """Record why a rank ended, unless it has recorded that itself.

    Args:
        exit_code: Exit code of its process; a negative one is the number of the signal that killed it.
        memory_ran_out: Whether the system killed a process for lack of memory in the meantime.
    """
    if (folder / f"error-{rank}.json").exists():
        return
    if exit_code >= 0:
        leave_error(folder, rank, message=f"ended with exit code {exit_code}", exit_code=exit_code)
        return
    name = signal.Signals(-exit_code).name
    text = f"was killed by {name}"
    if memory_ran_out and name == "SIGKILL":
        text += ": the system ran out of memory"
    elif name == "SIGKILL":
        text += ", as the system does when memory runs out"
    leave_error(folder, rank, message=text, exit_code=128 - exit_code, signal=name)


def memory_kills() -> int:
    """Number of processes that the system killed for lack of memory, in this container or on this machine (Linux)."""
    for path in (CONTAINER_EVENTS, MACHINE_EVENTS):
        try:
            fields = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        except OSError:
            continue
        if "oom_kill" in fields:
            return int(fields["oom_kill"])
    return 0
