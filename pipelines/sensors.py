"""Sensors: what asks for runs by itself. All are off until they are switched on."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from rarec.data.ledger import Seen
from rarec.errors import one_line
from resources.folders import Folders

RETRY_S = 120  # a run that failed before it had judged these files is asked for again so much later
NAMES_SHOWN = 10
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
GOING_ON = [status for status in dg.DagsterRunStatus if status not in ENDED]


def incoming_sensor(job: Any, datasets: Sequence[str], interval_s: int) -> dg.SensorDefinition:
    """Watches the incoming folders of all data sets and asks for `job` where files have settled.

    The looks that tell whether a file has settled are kept in the data set's ledger, where an ingestion sees them too:
    a tick that is killed loses at most its own look. What a run is asked for twice is ingested once all the same.
    """

    @dg.sensor(
        name="incoming_sensor",
        job=job,
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Asks for `ingest` where new interaction files have arrived and are complete.",
    )
    def sensor(context: dg.SensorEvaluationContext, folders: Folders) -> Iterator[dg.RunRequest | dg.SkipReason]:
        reasons = []
        asked = False
        for name in datasets:
            try:
                files = folders.incoming_files(name).listing()
                settled, settling = folders.ledger(name).look(files, time.time(), folders.settle_s)
            except Exception as error:  # a store that is away, of whatever kind, is no reason to leave out the others
                context.log.warning(f"{name}: its incoming files cannot be looked at: {one_line(error)}")
                reasons.append(f"{name}: cannot be looked at ({type(error).__name__}: {one_line(error)})")
                continue
            if settling:
                reasons.append(f"{name}: {len(settling)} files have not settled")
            if settled:
                request = _request(context.instance, job.name, name, settled)
                if isinstance(request, dg.RunRequest):
                    asked = True
                    yield request
                else:
                    reasons.append(request)
        if not asked:
            yield dg.SkipReason("; ".join(reasons) or "no new files")

    return sensor


def _request(instance: dg.DagsterInstance, job: str, name: str, settled: list[Seen]) -> dg.RunRequest | str:
    """A run over these files of the data set called `name`, or why none is asked for now."""
    going_on = instance.get_runs(
        dg.RunsFilter(job_name=job, tags={"dagster/partition": name}, statuses=GOING_ON), limit=1
    )
    if going_on:
        return f"{name}: run {going_on[0].run_id} is at it"
    text = "\n".join(f"{file.name}\t{file.bytes}\t{file.stamp}" for file in settled)
    identity = hashlib.sha256(text.encode()).hexdigest()[:16]
    earlier = instance.get_run_records(dg.RunsFilter(job_name=job, tags={"rarec/files_id": identity}))
    if earlier and (age := time.time() - earlier[0].update_timestamp.timestamp()) < RETRY_S:
        last = earlier[0].dagster_run
        return f"{name}: run {last.run_id} over the same files ended as {last.status.value} {age:.0f} s ago"
    shown = ", ".join(file.name for file in settled[:NAMES_SHOWN])
    more = f" and {len(settled) - NAMES_SHOWN} more" if len(settled) > NAMES_SHOWN else ""
    return dg.RunRequest(
        run_key=f"incoming {name} {identity} {len(earlier) + 1}",
        partition_key=name,
        tags={
            "rarec/reason": f"{len(settled)} new files",
            "rarec/files": shown + more,
            "rarec/files_id": identity,
        },
    )
