"""How a training worker reports to the process that launched it, and dies with it.

A worker module ends with `if __name__ == "__main__": worker_main(SomeJob, work)` and runs as `python -m <module>
job.json`, alone or under torchrun. Under Dagster rank 0 reports through Dagster Pipes; otherwise it prints.
"""

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from rarec.errors import InputError
from rarec.training.gpu import gpu_figures
from rarec.training.job import J, Place, read_job
from rarec.training.pace import Pace
from rarec.training.worker.worker_files import Heartbeat, clear_signs, leave_error, log_file, stacks_file

LAUNCHER_PID = "RAREC_LAUNCHER_PID"  # set by the process that starts the worker, with which the worker ends
# What torchrun sets for a single process; port 0 lets the system choose a free one.
LONE_WORKER = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
INPUT_ERROR_EXIT = 2
REPORT_SHARE = 0.0005  # least time between reports, as a share of the time so far: Pipes keeps them all
PARENT_CHECK_S = 1.0

ReportProgress = Callable[..., None]
"""Takes the arguments of `ProgressReporter.report`."""

progress_log = logging.getLogger("rarec.progress")  # `make run` shows it in the terminal

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def quiet(**_: object) -> None:
    """A `ReportProgress` that tells nobody, for work outside training workers."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come; None where it is unknown."""

    stage: str
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    eta_s: float | None = None  # seconds to the end of the stage, with every epoch
    metrics: dict[str, float] = field(default_factory=dict)
    unit: str = "step"  # what a step is called
    soonest_s: float | None = None  # `eta_s` if no further epoch is better

    def line(self) -> str:
        """One line for a terminal."""
        parts = [self.stage]
        for name, value, total in (("epoch", self.epoch, self.epochs), (self.unit, self.step, self.steps)):
            if value is not None:
                parts.append(f"{name} {value}" + (f"/{total}" if total is not None else ""))
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        parts.extend(f"{n} {v:,.0f}" if abs(v) >= 1000 else f"{n} {v:.4g}" for n, v in self.metrics.items())
        if self.eta is not None:
            parts.append(f"ETA {self.eta}")
        return "  ".join(parts)

    @property
    def eta(self) -> str | None:
        """When the stage ends, in words; from the soonest to the latest end."""
        if self.eta_s is None:
            return None
        latest = duration(self.eta_s)
        soonest = latest if self.soonest_s is None else duration(self.soonest_s)
        return latest if soonest == latest else f"{soonest} to {latest}"


def duration(seconds: float) -> str:
    """Text such as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressReporter:
    """Reports the progress of rank 0. On every rank, a report is also a sign of life.

    There is at most one report every `interval_s` seconds, and fewer in long trainings: about ten thousand a day.
    """

    def __init__(self, interval_s: float = 0.5, heartbeat: Heartbeat | None = None) -> None:
        self._interval_s = interval_s
        self._heartbeat = heartbeat
        self._resources = ExitStack()
        self._send: Callable[[Progress], None] | None = None
        self._opened = time.monotonic()
        self._sent_at = -float("inf")
        self._stage = ""
        self._pace = Pace(0, self._opened)  # of each stage, from its first step

    def __enter__(self) -> "ProgressReporter":
        if launched_rank() == 0:
            self._send = self._open_pipes() if "DAGSTER_PIPES_CONTEXT" in os.environ else _print
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._send = None
        self._resources.__exit__(*exception)  # type: ignore[arg-type]

    def report(
        self,
        *,
        stage: str,
        epoch: int | None = None,
        epochs: int | None = None,
        step: int | None = None,
        steps: int | None = None,
        loss: float | None = None,
        eta_s: float | None = None,
        soonest_s: float | None = None,
        force: bool = False,
        unit: str = "step",
        **metrics: float,
    ) -> None:
        """Report progress. A report that follows the last one too soon is dropped, unless `force` is set.

        Force the last report before long work, such as the end of an epoch: it counts as a sign of life at once.

        Without `eta_s`, the time to the end of the stage is estimated from the pace of the last minute. The training
        loop of every rank must report: a rank that is silent for the launcher's `heartbeat_s` seconds counts
        as hung.
        """
        if self._heartbeat is not None and (force or self._heartbeat.is_due()):
            self._heartbeat.beat(Progress(stage=stage, epoch=epoch, epochs=epochs, step=step, steps=steps).line())
        if self._send is None:
            return
        now = time.monotonic()
        if step is not None and self._stage != stage:
            self._stage = stage
            self._pace = Pace(step, now)
        if not force and now - self._sent_at < max(self._interval_s, REPORT_SHARE * (now - self._opened)):
            return
        if eta_s is None and step is not None and steps is not None:
            pace = self._pace.look(step, now)
            eta_s = None if pace is None else pace * (steps - step)
        self._sent_at = now
        self._send(
            Progress(
                stage=stage,
                epoch=epoch,
                epochs=epochs,
                step=step,
                steps=steps,
                loss=None if loss is None else float(loss),
                eta_s=eta_s,
                soonest_s=soonest_s,
                metrics={name: float(value) for name, value in metrics.items()} | gpu_figures(),
                unit=unit,
            )
        )

    def _open_pipes(self) -> Callable[[Progress], None]:
        from dagster_pipes import open_dagster_pipes  # workers also run without Dagster

        pipes = self._resources.enter_context(open_dagster_pipes())
        return lambda progress: pipes.report_custom_message(asdict(progress))


def worker_main(kind: type[J], work: Callable[[J, Place, ProgressReporter], None]) -> None:
    """Run `work(job, place, reporter)` on the job file named on the command line, which holds a job of this kind.

    An exception is written to error-<rank>.json beside the job file, for the launcher to show, and ends the process at
    once, with exit code 2 for InputError and 1 otherwise: a failed rank must not wait for a broken process group.
    """
    if len(sys.argv) != 2:
        raise SystemExit("Give exactly one argument, the job file: python -m <module> job.json")
    job_file = Path(sys.argv[1])
    rank, folder = launched_rank(), job_file.parent
    _die_with_launcher()
    clear_signs(folder, rank)
    if LAUNCHER_PID in os.environ:
        _tell_launcher(folder, rank)
    try:
        job, place = read_job(job_file, kind)
        heartbeat = Heartbeat(folder, rank)
        heartbeat.beat("start")
        with ProgressReporter(heartbeat=heartbeat) as reporter:
            work(job, place, reporter)
        heartbeat.end()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Exit at once: gloo's threads may abort a process whose interpreter shuts down under them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    except Exception as error:
        bad_input = isinstance(error, InputError)
        exit_code = INPUT_ERROR_EXIT if bad_input else 1
        with suppress(OSError):  # a full disk may still take the small file below
            if bad_input:
                print(f"InputError: {error}", file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
        try:
            leave_error(
                folder,
                rank,
                message=str(error),
                exit_code=exit_code,
                type=type(error).__name__,
                input_error=bad_input,
                traceback=traceback.format_exc(),
            )
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(exit_code)


def _tell_launcher(folder: Path, rank: int) -> None:
    """Give this rank a log file of its own, and dump its stacks on SIGUSR1."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        output = os.open(log_file(folder, rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    faulthandler.enable()  # shows where native code crashed
    stacks = os.open(stacks_file(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)  # stays open for good
    faulthandler.register(signal.SIGUSR1, stacks)


def launched_rank() -> int:
    """Rank that the launcher gave this worker, known before there is a process group; 0 outside the launcher."""
    return int(os.environ.get("RANK", "0"))


def _print(progress: Progress) -> None:
    print(progress.line(), flush=True)


def _die_with_launcher() -> None:
    """End this worker when its launcher dies, even by kill -9.

    The kernel signals only the direct child, which is torchrun if there are several ranks. So a thread watches, too.
    """
    if LAUNCHER_PID not in os.environ:
        return
    launcher = int(os.environ[LAUNCHER_PID])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ancestors = {process.pid: process for process in psutil.Process().parents()}
    if launcher not in ancestors:  # it is dead already
        _kill_self()
    threading.Thread(target=_watch, args=(ancestors[launcher],), name="launcher-watch", daemon=True).start()


def _watch(launcher: psutil.Process) -> None:
    while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
        time.sleep(PARENT_CHECK_S)
    _kill_self()


def _kill_self() -> None:
    """End this worker and, if it leads its process group, the processes it started."""
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
