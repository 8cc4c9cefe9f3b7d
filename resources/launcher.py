"""Runs training in worker processes and owns them: whatever happens to the asset, no process is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import dagster as dg
import psutil
from pydantic import Field

from rarec.errors import InputError
from rarec.training.progress import LAUNCHER_PID, LONE_WORKER, Progress, duration

POLL_S = 0.2
OBSERVATION_INTERVAL_S = 15.0
LOG_LINES_PER_EVENT = 50
LAST_LINES = 25  # of the log, shown when a worker fails
KILL_WAIT_S = 10.0  # after SIGKILL; a process stuck in the kernel cannot be ended from here

# Dagster warns about its own use of a preview property at every Pipes session.
warnings.filterwarnings("ignore", message=".*expected_writer_count.*", category=dg.PreviewWarning)

LAUNCH_ID = "RAREC_LAUNCH_ID"  # marks every process of one launch, also those whose parent is gone


class TrainingLauncher(dg.ConfigurableResource):
    """Starts one worker process per device on this machine and follows them to the end."""

    nproc: int = Field(default=0, ge=0, description="Worker processes; 0 means one per GPU, or one without a GPU.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto takes GPUs if any."
    )
    threads_per_process: int = Field(default=0, ge=0, description="CPU threads of each worker; 0 shares out the cores.")
    timeout_s: float = Field(default=0, ge=0, description="Longest time one training may take; 0 means no limit.")
    grace_s: float = Field(default=10, ge=0, description="Time between SIGTERM and SIGKILL when workers must end.")

    def launch(
        self,
        context: dg.AssetExecutionContext,
        module: str,
        job: Mapping[str, Any],
        workdir: Path,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Run `python -m <module> <workdir>/job.json` in every worker and return when all have succeeded.

        `job` must be JSON. Output goes to the Dagster log and to workdir/log.txt; rank 0's progress becomes
        observations of the asset (the first, the last, and one every 15 s between) and calls of `on_progress`. The
        asset must return a MaterializeResult, as with every Dagster Pipes session. Raises dg.Failure if a worker fails
        (without retries for an InputError), InputError for settings this machine cannot fulfil.
        """
        device, nproc = self._resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        for leftover in workdir.glob("error-*.json"):
            leftover.unlink()
        job_file = workdir / "job.json"
        job_file.write_text(json.dumps(dict(job), indent=1, sort_keys=True), encoding="utf-8")
        command = _command(module, job_file, nproc)
        launch_id = uuid.uuid4().hex
        context.log.info(f"Training in {nproc} process(es) on {device}: {' '.join(command)}")

        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            environment = {
                **os.environ,
                **_worker_environment(device, nproc, self.threads_per_process),
                **session.get_bootstrap_env_vars(),
                LAUNCHER_PID: str(os.getpid()),
                LAUNCH_ID: launch_id,
            }
            relay = _ProgressRelay(context, session, on_progress)
            with _LogFollower(workdir / "log.txt", context) as log:
                try:
                    process = subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log.stream,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C reaches Dagster alone, which then ends the workers below
                    )
                    timed_out = self._wait(process, log, relay)
                finally:
                    stuck = end_processes(launch_id, self.grace_s)
                    log.forward()
                    if stuck:
                        context.log.error(f"Processes that could not be ended, even by SIGKILL: {stuck}")
        relay.finish()
        exit_code = process.wait()
        if timed_out or exit_code != 0:
            raise _failure(workdir, exit_code, log.last_lines, self.timeout_s if timed_out else None)

    def _wait(self, process: subprocess.Popen[bytes], log: "_LogFollower", relay: "_ProgressRelay") -> bool:
        """Follow the workers until they end; True if they ran out of time."""
        started = time.monotonic()
        while process.poll() is None:
            log.forward()
            relay.forward()
            if self.timeout_s and time.monotonic() - started > self.timeout_s:
                return True
            time.sleep(POLL_S)
        return False

    def _resolve(self) -> tuple[Literal["cpu", "cuda"], int]:
        """Device and number of processes that the settings mean on this machine."""
        gpus = 0 if self.device == "cpu" else _gpu_count()
        if self.device == "cuda" and gpus == 0:
            raise InputError(
                "The launcher's device is 'cuda' but this machine shows no GPU; set it to 'auto' or 'cpu'."
            )
        if gpus and self.nproc > gpus:
            raise InputError(
                f"The launcher's nproc (RAREC_NPROC) is {self.nproc} but this machine has {gpus} GPU(s); set it to 0 "
                f"(all of them) or at most {gpus}, or the launcher's device to 'cpu'."
            )
        return ("cuda" if gpus else "cpu"), self.nproc or max(gpus, 1)


class _LogFollower:
    """The workers' output file: they write, we forward what is new to the Dagster log."""

    def __init__(self, path: Path, context: dg.AssetExecutionContext) -> None:
        self._path = path
        self._context = context
        self._rest = b""
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.stream: IO[bytes]
        self._reader: IO[bytes]

    def __enter__(self) -> "_LogFollower":
        self.stream = self._path.open("ab")
        self._reader = self._path.open("rb")
        self._reader.seek(0, os.SEEK_END)  # earlier attempts stay in the file and are not told again
        return self

    def __exit__(self, *_: object) -> None:
        self.forward()
        self._tell([self._rest] if self._rest else [])
        self.stream.close()
        self._reader.close()

    def forward(self) -> None:
        """Log the complete lines written since the last call."""
        *lines, self._rest = (self._rest + self._reader.read()).split(b"\n")
        self._tell(lines)

    def _tell(self, lines: list[bytes]) -> None:
        # A progress bar redraws its line with carriage returns: keep its last state.
        texts = [line.decode("utf-8", errors="replace").rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
        texts = [text for text in texts if text.strip()]
        self.last_lines.extend(texts)
        if len(texts) > LOG_LINES_PER_EVENT:
            hidden = len(texts) - LOG_LINES_PER_EVENT
            texts = [f"... {hidden} more lines in {self._path}", *texts[hidden:]]
        if texts:
            self._context.log.info("\n".join(texts))


class _ProgressRelay:
    """Hands each progress message of rank 0 to the caller, and some of them to Dagster as observations."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        session: dg.PipesSession,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._context = context
        self._session = session
        self._on_progress = on_progress
        self._seen = 0
        self._unobserved: Progress | None = None
        self._observed_at = -float("inf")

    def forward(self) -> None:
        """Handle the messages that arrived since the last call."""
        messages = self._session.get_custom_messages()[self._seen :]
        self._seen += len(messages)
        for message in messages:
            progress = Progress(**message)
            self._unobserved = progress
            if self._on_progress is not None:
                self._on_progress(progress)
            if time.monotonic() - self._observed_at >= OBSERVATION_INTERVAL_S:
                self._observe(progress)

    def finish(self) -> None:
        """Handle the last messages and observe the final state."""
        self.forward()
        if self._unobserved is not None:
            self._observe(self._unobserved)

    def _observe(self, progress: Progress) -> None:
        values = {
            "stage": progress.stage,
            "epoch": progress.epoch,
            "epochs": progress.epochs,
            "step": progress.step,
            "steps": progress.steps,
            "loss": progress.loss,
            "ETA": None if progress.eta_s is None else duration(progress.eta_s),
            **progress.metrics,
        }
        # JSON has no NaN or infinity, so they are shown as text.
        metadata = {
            name: str(value) if isinstance(value, float) and value - value != 0 else value
            for name, value in values.items()
            if value is not None
        }
        partition = self._context.partition_key if self._context.has_partition_key else None
        self._context.log_event(
            dg.AssetObservation(asset_key=self._context.asset_key, partition=partition, metadata=metadata)
        )
        self._observed_at = time.monotonic()
        self._unobserved = None


def end_processes(launch_id: str, grace_s: float) -> list[int]:
    """End every process of a launch: SIGTERM, `grace_s` to leave, SIGKILL. Returns the pids of those still there.

    Process groups do not help: torchrun gives each worker its own. Processes are found by the launch id in their
    environment, which they keep when their parent dies, and as children of those.
    """
    known: set[psutil.Process] = set()

    def alive() -> set[psutil.Process]:
        known.update(_processes_of(launch_id))
        return {process for process in known if _is_alive(process)}

    def send(number: signal.Signals, processes: set[psutil.Process]) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    try:
        send(signal.SIGTERM, alive())
        deadline = time.monotonic() + grace_s
        while alive() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:  # also when a second interrupt cuts the wait short
        deadline = time.monotonic() + KILL_WAIT_S
        while (left := alive()) and time.monotonic() < deadline:
            send(signal.SIGKILL, left)
            time.sleep(0.1)
    return sorted(process.pid for process in left)


def _processes_of(launch_id: str) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(LAUNCH_ID) == launch_id:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:  # gone meanwhile, or of another user
            continue
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(module: str, job_file: Path, nproc: int) -> list[str]:
    if nproc == 1:  # torchrun would add seconds and nothing else
        return [sys.executable, "-m", module, str(job_file)]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
        *(f"--nproc-per-node={nproc}", "-m", module, str(job_file)),
    ]


def _worker_environment(device: Literal["cpu", "cuda"], nproc: int, threads: int) -> dict[str, str]:
    environment = {
        "DS_ACCELERATOR": device,
        "OMP_NUM_THREADS": str(threads or max(1, (os.cpu_count() or 1) // nproc)),
        "PYTHONUNBUFFERED": "1",
    }
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # the worker then finds no GPU and takes gloo
    if sys.platform == "linux":  # one machine: the ranks meet on the loopback interface
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if nproc == 1:
        environment |= LONE_WORKER
    return environment


def _gpu_count() -> int:
    import torch  # seconds to import, and not needed when the device is "cpu"

    return torch.cuda.device_count()


def _failure(workdir: Path, exit_code: int, last_lines: deque[str], timeout_s: float | None) -> dg.Failure:
    """The worker that failed first, in its own words."""
    log = str(workdir / "log.txt")
    metadata: dict[str, Any] = {
        "exit code": exit_code,
        "log": dg.MetadataValue.path(log),
        "last lines": "\n".join(last_lines),
    }
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in workdir.glob("error-*.json")]
    errors.sort(key=lambda error: (not error["input_error"], error["time"]))
    if errors and errors[0]["input_error"]:
        return dg.Failure(errors[0]["message"], metadata=metadata, allow_retries=False)
    tail = "\n".join(last_lines) or "(no output)"
    if timeout_s is not None:
        return dg.Failure(
            f"Training ran longer than timeout_s = {timeout_s:g} s and was ended. Last lines:\n{tail}", metadata
        )
    if errors:
        first = errors[0]
        return dg.Failure(
            f"Training worker {first['rank']} failed: {first['type']}: {first['message']} (exit code {exit_code}; full "
            f"log {log})\n{first['traceback']}",
            metadata,
        )
    cause = f"exit code {exit_code}"
    if exit_code < 0:
        cause = f"killed by {signal.Signals(-exit_code).name}"
        if exit_code == -signal.SIGKILL:
            cause += ", as the system does when memory runs out"
    return dg.Failure(f"Training worker failed: {cause}. Last lines of {log}:\n{tail}", metadata)
