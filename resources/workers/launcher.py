"""Runs training in worker processes and owns them: whatever happens to the asset, no process is left behind."""

import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from rarec.errors import InputError
from rarec.training.engine_settings import EngineSettings
from rarec.training.job import Place, WorkerJob, write_job
from rarec.training.progress import Progress, progress_log
from rarec.training.worker.node import Assignment
from rarec.training.worker.worker_files import clear_signs, stacks_file
from resources.machines import Machines, read_hostfile
from resources.settings import HEARTBEAT_S, REMOTE_SHELL
from resources.workers.failures import Ending, Errors, failure, full_disk
from resources.workers.heartbeat_monitor import Pulse
from resources.workers.log_follower import OutputFollower
from resources.workers.whole_lines import WholeLineReader

POLL_S = 0.2
OBSERVATION_INTERVAL_S = 15.0
CANCEL_LOOK_S = 10.0
SETTLE_S = 5.0  # between the first error and ending all ranks: others may report errors too
STACKS_WAIT_S = 8.0  # for the ranks to write their stacks, also on machines that look at announcements

# Dagster warns about its own use of a preview property at every Pipes session.
warnings.filterwarnings("ignore", message=".*expected_writer_count.*", category=dg.PreviewWarning)


class TrainingLauncher(dg.ConfigurableResource):
    """Starts one worker process per device, on this machine or several, and follows them to the end."""

    nproc: int = Field(
        default=0, ge=0, description="Worker processes of each machine; 0 means one per GPU, or one without a GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device to train on; auto uses GPUs if there are any."
    )
    threads_per_process: int = Field(default=0, ge=0, description="CPU threads of each worker; 0 shares out the cores.")
    timeout_s: float = Field(default=0, ge=0, description="Longest time one training may take; 0 means no limit.")
    heartbeat_s: float = Field(
        default=HEARTBEAT_S,
        ge=0,
        description="Time without a report after which a worker counts as hung; 0 means never.",
    )
    grace_s: float = Field(default=10, ge=0, description="Time between SIGTERM and SIGKILL when workers must end.")
    environment: dict[str, str] = Field(
        default={}, description="Environment variables for the workers; dg.EnvVar keeps a value out of Dagster's pages."
    )
    hostfile: str = Field(default="", description="DeepSpeed hostfile of the machines to train on, this one or others.")
    remote_shell: str = Field(
        default=REMOTE_SHELL,
        description="What runs a command on a host of the hostfile: gets the host and a shell line.",
    )
    rendezvous: str = Field(
        default="", description="This machine's host[:port] as the machines that join it (pipelines.join) reach it."
    )
    nodes: int = Field(
        default=1, ge=1, description="Machines that train together through the rendezvous, including this one."
    )
    engine: dict[str, Any] = Field(
        default={}, description="How trainings are held, computed and saved: fields of rarec.training.EngineSettings."
    )
    announced: str = Field(default="", description="Shared folder where machines that join look for trainings.")

    def launch(
        self,
        context: dg.AssetExecutionContext,
        job: WorkerJob,
        output: Path,
        checkpoint: Path,
        workdir: Path,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Run `python -m <job.module> <workdir>/job.json` in every worker and return when all have succeeded.

        Workers write into `output` and `checkpoint`. What they print goes to the Dagster log and to workdir/log*.txt.
        Rank 0's progress becomes observations of the asset (the first, the last, and one every 15 s between) and calls
        of `on_progress`. The asset must return a MaterializeResult, as with every Dagster Pipes session. Several
        machines need these folders on a file system that they share.

        Raises:
            dg.Failure: A worker failed; without retries if it was for an InputError.
            InputError: The launcher's settings contradict each other, or this machine cannot fulfil them.
        """
        device, hosts = self._resolve()
        engine, processes = EngineSettings(**self.engine), sum(hosts.values())
        workdir = workdir.absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        if full := full_disk(workdir):  # otherwise the training would fail at some write, which would hide the cause
            raise InputError(full)
        clear_signs(workdir)
        job_file = workdir / "job.json"
        write_job(job_file, job, Place(output=output, checkpoint=checkpoint, engine=engine))
        threads = f"threads {self.threads_per_process} each" if self.threads_per_process else "cores shared out"
        progress_log.info(
            "%s", f"  processes {processes}  {threads}  device {device}  {engine.precision}  ZeRO {engine.stage}"
        )
        where = " and ".join(f"{slots} on {host}" for host, slots in hosts.items())
        context.log.info(f"Training with {job.module} in {where} ({device}); working folder {workdir}")

        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesFileContextInjector(str(workdir / "pipes-context.json")),
            message_reader=WholeLineReader(str(workdir / "pipes-messages.json")),
        ) as session:
            assignment = Assignment(
                module=job.module,
                job_file=str(job_file),
                processes=next(iter(hosts.values())),
                environment={**_device_environment(device), **session.get_bootstrap_env_vars(), **self.environment},
                threads=self.threads_per_process,
                grace_s=self.grace_s,
            )
            relay = _ProgressRelay(context, session, on_progress)
            log = OutputFollower(workdir, context)
            errors = Errors(workdir)
            stacks: dict[int, str] = {}
            with self._machines(context, workdir, hosts, assignment) as machines:
                pulse = Pulse(workdir, processes)
                try:
                    ending = self._wait(machines, log, relay, errors, pulse, _Cancellation(context))
                    if ending.hung:
                        stacks = _collect_stacks(machines, workdir, processes)
                finally:
                    log.forward()
            log.finish()
        relay.finish()
        for rank, text in stacks.items():
            context.log.error(f"Stacks of worker {rank}:\n{text}")
        if ending != Ending(exit_code=0):
            raise failure(ending, errors, log, stacks, workdir)

    def result_settings(self) -> dict[str, Any]:
        """The settings that change a training's result, and so belong to its artifact's identity."""
        precision = EngineSettings(**self.engine).precision
        return {} if precision == "fp32" else {"precision": precision}

    def _wait(
        self,
        machines: Machines,
        output: OutputFollower,
        relay: "_ProgressRelay",
        errors: Errors,
        pulse: Pulse,
        cancellation: "_Cancellation",
    ) -> Ending:
        """Follow the workers until they end, fail, fall silent or run out of time.

        The agents of machines that join cannot be polled from here; the signs of life of their ranks are used instead.

        Raises:
            dg.DagsterExecutionInterruptedError: the run was cancelled, but its signal was lost.
        """
        started = time.monotonic()
        failed_at: float | None = None
        while True:
            exit_code = machines.exit_code()
            output.forward()
            relay.forward()
            if exit_code or (exit_code == 0 and (not self.rendezvous or pulse.all_ended())):
                return Ending(exit_code=exit_code)
            now = time.monotonic()
            if cancellation.unheard():
                raise dg.DagsterExecutionInterruptedError
            if self.timeout_s and now - started > self.timeout_s:
                return Ending(timed_out_s=self.timeout_s)
            if errors.look():
                failed_at = failed_at or now
                if now - failed_at > SETTLE_S:  # some would wait forever for the failed one
                    return Ending()
            elif self.heartbeat_s and (hung := pulse.silent(self.heartbeat_s)):
                return Ending(hung=tuple(hung), heartbeat_s=self.heartbeat_s)
            time.sleep(POLL_S)

    @contextmanager
    def _machines(
        self, context: dg.AssetExecutionContext, workdir: Path, hosts: Mapping[str, int], assignment: Assignment
    ) -> Iterator[Machines]:
        """The machines while they train. Whatever happens inside the block, nothing runs on them afterwards."""
        launch_id = uuid.uuid4().hex
        machines = Machines(workdir, launch_id)
        try:
            if self.hostfile:
                machines.start_on_hosts(hosts, self.remote_shell, assignment)
            elif self.rendezvous:
                machines.start_with_rendezvous(self.rendezvous, self.nodes, Path(self.announced), assignment)
            else:
                machines.start_here(assignment)
            yield machines
        finally:
            if stuck := machines.end(self.grace_s):
                context.log.error(f"Processes that could not be ended, even by SIGKILL: {stuck}")

    def _resolve(self) -> tuple[Literal["auto", "cpu", "cuda"], dict[str, int]]:
        """The device, and the number of processes on each machine, that the settings give here."""
        if self.hostfile and self.rendezvous:
            raise InputError(
                "The launcher has both a hostfile (RAREC_HOSTFILE) and a rendezvous (RAREC_RENDEZVOUS); set only one."
            )
        if self.hostfile:
            if self.nproc or self.nodes > 1:
                raise InputError(
                    "The launcher has a hostfile (RAREC_HOSTFILE), whose lines and slots say how many machines and "
                    "processes; leave nproc (RAREC_NPROC) and nodes (RAREC_NODES) unset."
                )
            return self.device, read_hostfile(Path(self.hostfile))  # the GPUs of this machine do not matter there
        if bool(self.rendezvous) != (self.nodes > 1):
            raise InputError(
                f"The launcher's rendezvous (RAREC_RENDEZVOUS) is {self.rendezvous!r} and nodes (RAREC_NODES) is "
                f"{self.nodes}; to train on several machines, set both: this machine's address and the number of "
                "machines. Otherwise set neither."
            )
        if self.rendezvous and not self.announced:
            raise InputError("The launcher has a rendezvous; also set announced to a folder that the machines share.")
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
        machines = ["this machine", *(f"machine {number} that joins" for number in range(2, self.nodes + 1))]
        return ("cuda" if gpus else "cpu"), dict.fromkeys(machines, self.nproc or max(gpus, 1))


class _Cancellation:
    """Checks whether the run is being cancelled.

    Dagster interrupts a step once. An exception that is raised while Python runs a finaliser is dropped, and the step
    would train on.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._instance, self._run_id = context.instance, context.run.run_id
        self._looked_at = time.monotonic()
        self._asked = False

    def unheard(self) -> bool:
        """Whether the previous check already found the run being cancelled; checks every `CANCEL_LOOK_S`."""
        now = time.monotonic()
        if now - self._looked_at < CANCEL_LOOK_S:
            return False
        self._looked_at = now
        try:
            run = self._instance.get_run_by_id(self._run_id)
        except Exception:  # an unavailable database is no reason to end a training
            return False
        asked_before, self._asked = self._asked, run is not None and run.status == dg.DagsterRunStatus.CANCELING
        return asked_before and self._asked


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
            "ETA": progress.eta,
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


def _collect_stacks(machines: Machines, workdir: Path, ranks: int) -> dict[int, str]:
    """The Python stacks of each rank that answers."""
    machines.ask_for_stacks()
    deadline = time.monotonic() + STACKS_WAIT_S
    while True:
        files = {rank: stacks_file(workdir, rank) for rank in range(ranks)}
        stacks = {rank: file.read_text() for rank, file in files.items() if file.exists() and file.stat().st_size}
        if len(stacks) == ranks or time.monotonic() > deadline:
            return stacks
        time.sleep(POLL_S)


def _device_environment(device: Literal["auto", "cpu", "cuda"]) -> dict[str, str]:
    environment = {"PYTHONUNBUFFERED": "1"}
    if device != "auto":  # each worker then detects GPUs itself
        environment["DS_ACCELERATOR"] = device
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # the worker then finds no GPU and takes gloo
    return environment


def _gpu_count() -> int:
    import torch  # seconds to import, and not needed when the device is "cpu"

    return torch.cuda.device_count()
