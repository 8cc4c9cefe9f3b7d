"""Schedules: every track and every drift job, weekly by default. All are off until you turn them on."""

from collections.abc import Iterator

import dagster as dg

from assets.champions.track import CHAMPION_TRACKS
from assets.framework.lineage import TRACK_JOBS
from pipelines.jobs import drift_job
from rarec.data.spec import Declared, find_spec
from rarec.errors import InputError
from resources.settings import SCHEDULE, Installation


def weekly_schedules(installation: Installation, declared: Declared) -> list[dg.ScheduleDefinition]:
    """`rarec_<job>_weekly` for every track and every drift job, over the data sets of RAREC_SCHEDULED.

    Raises:
        InputError: a data set is unknown, or RAREC_SCHEDULE is not a cron expression.
    """
    try:
        # Runs of a data set whose file is wrong fail with the reason. They do not stop the other schedules.
        datasets = [
            name if name in declared.names else find_spec(name, declared.specs).name for name in installation.scheduled
        ]
    except InputError as error:
        raise InputError(f"RAREC_SCHEDULED: {error}") from error
    try:
        return [
            _schedule(job, installation.schedule, datasets) for job in (*TRACK_JOBS, *map(drift_job, CHAMPION_TRACKS))
        ]
    except dg.DagsterInvalidDefinitionError as error:
        raise InputError(
            f"RAREC_SCHEDULE is {installation.schedule!r}; set it to a cron expression such as {SCHEDULE}"
        ) from error


def _schedule(job: str, cron: str, datasets: list[str]) -> dg.ScheduleDefinition:
    def runs(_context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        # Dagster adds the time of the tick to the key, so that a daemon killed during a tick requests no run twice.
        yield from (dg.RunRequest(run_key=name, partition_key=name) for name in datasets)

    return dg.ScheduleDefinition(
        name=f"rarec_{job}_weekly",
        job_name=job,
        cron_schedule=cron,
        execution_fn=runs,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Runs {job} for {', '.join(datasets)} (RAREC_SCHEDULED, RAREC_SCHEDULE).",
    )
