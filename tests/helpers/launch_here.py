"""Trainings in this process: what a worker would do, without the seconds that a process takes to import its libraries.

That a worker does the same is proven where real ones are launched: by the tests of the launcher and by one run of
each track, whose artifacts are compared.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from lone_worker import lone_worker

from rarec.errors import InputError
from rarec.training.engine_settings import EngineSettings
from rarec.training.job import Place, WorkerJob, read_job, write_job
from rarec.training.progress import Progress, ProgressReporter, quiet
from resources.workers.launcher import TrainingLauncher


class _Reporter(ProgressReporter):
    """Hands every report on."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        super().__init__(interval_s=0)
        self._on_progress = on_progress

    def __enter__(self) -> "_Reporter":
        self._send = self._on_progress
        return self


def launch_here(
    self: TrainingLauncher,
    context: dg.AssetExecutionContext,
    job: WorkerJob,
    output: Path,
    checkpoint: Path,
    workdir: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """In place of `TrainingLauncher.launch`: the job goes through its file, the work is done here."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "job.json"
    write_job(file, job, Place(output=output, checkpoint=checkpoint, engine=EngineSettings(**self.engine)))
    read, place = read_job(file, type(job))
    with lone_worker(), _Reporter(on_progress or quiet) as reporter:
        try:
            importlib.import_module(job.module).work(read, place, reporter)
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
