"""What a worker is asked to do, as a type: the only thing that goes from an asset to a worker process.

Each job class stands in its worker's module, beside the function that does the job.
"""

import json
from pathlib import Path
from typing import ClassVar, TypeVar

from rarec.config import Settings
from rarec.training.engine_settings import EngineSettings

J = TypeVar("J", bound="WorkerJob")


class WorkerJob(Settings):
    """Base of what an asset asks a worker to do: settings, inputs and their identities."""

    module: ClassVar[str]
    """The worker's module, which runs as ``python -m <module> <job file>``: that of the job's class."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        """Note the module of the class."""
        cls.module = cls.__dict__.get("module", cls.__module__)


class Place(Settings):
    """Where a worker writes and how it computes. The launcher fills it in."""

    output: Path
    """Folder of the artifact; it exists."""
    checkpoint: Path
    """Folder that a later attempt of the same job gets again; the worker creates it."""
    engine: EngineSettings = EngineSettings()


def write_job(file: Path, job: WorkerJob, place: Place) -> None:
    """Write a job file, for `read_job`."""
    # Engine settings tell what was set from what was not, so only what was set goes into the file.
    document = {"job": job.model_dump(mode="json"), "place": place.model_dump(mode="json", exclude_unset=True)}
    file.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")


def read_job(file: Path, kind: type[J]) -> tuple[J, Place]:
    """Read what `write_job` wrote.

    Raises:
        pydantic.ValidationError: The job is not of this kind.
    """
    document = json.loads(file.read_text(encoding="utf-8"))
    return kind.model_validate(document["job"]), Place.model_validate(document["place"])
