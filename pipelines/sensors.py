"""Sensors. All are off by default except the notifications and the one for the job `demo`."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import requests

from assets.champions.track import CHAMPION_TRACKS
from pipelines.jobs import DEMO
from rarec.data.incoming.ledger import Seen
from rarec.errors import one_line
from resources.mlflow.tracking import MlflowTracking
from resources.settings import Installation
from resources.workspace import Workspace

FOLLOWED = ("refresh", "finetune", "pretrain", "tune")
INTERVAL_S = 60
DEMO_INTERVAL_S = 5  # somebody is waiting for it
WEBHOOK_TIMEOUT_S = 10
MESSAGE_LENGTH = 2000
MOST_REPORTS = 200  # read in one tick; the rest wait for the next one
# If a run leaves its files unjudged, the next run is requested after this time, which doubles with every attempt.
RETRY_S = 120
LONGEST_RETRY_S = 6 * 3600
NAMES_SHOWN = 10
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
GOING_ON = [status for status in dg.DagsterRunStatus if status not in ENDED]


def follow_drift(jobs: Sequence[Any], datasets: Sequence[str]) -> dg.SensorDefinition:
    """The sensor that acts on drift reports. ``jobs``: those of the cascade; a verdict is the name of one of them."""

    @dg.sensor(
        jobs=[job for job in jobs if job.name in FOLLOWED],
        minimum_interval_seconds=INTERVAL_S,
        description="Requests the step that the newest drift report of each data set calls for, once per report, if "
        "the champion that the report measured is still in use.",
    )
    def follow_drift(context: dg.SensorEvaluationContext, tracking: MlflowTracking) -> dg.SensorResult | dg.SkipReason:
        reports = {track.drift_asset: track.name for track in CHAMPION_TRACKS.values()}
        newest, cursor = _newest_reports(context, tuple(reports), datasets)
        run_requests, reasons = [], []
        for (name, partition), report in newest.items():
            verdict = str(report["verdict"])
            if verdict not in FOLLOWED:
                continue
            try:
                champion = tracking.registry(reports[name], partition).champion()
            except Exception as error:  # MLflow and its stores have errors of their own
                return dg.SkipReason(f"the champions cannot be looked up; the next tick retries: {one_line(error)}")
            if champion is None or champion.number != report["champion"]:
                reasons.append(
                    f"{partition}: the newest {name} measured version {report['champion']}, which is no longer in use"
                )
                continue
            run_requests.append(
                dg.RunRequest(
                    job_name=verdict,
                    partition_key=partition,
                    run_key=f"{partition} {report['fingerprint']}",  # a reused report requests nothing again
                    tags={"rarec/verdict": verdict, "rarec/reason": str(report["reason"])},
                )
            )
        skip = "; ".join(reasons) if reasons and not run_requests else None
        return dg.SensorResult(run_requests=run_requests, cursor=cursor, skip_reason=skip)

    return follow_drift


def _newest_reports(
    context: dg.SensorEvaluationContext, reports: Sequence[str], datasets: Sequence[str]
) -> tuple[dict[tuple[str, str], dict[str, Any]], str | None]:
    """(asset, data set) -> metadata of the newest report since the cursor, and the next cursor.

    Without a cursor, when the sensor is first turned on, only the newest report of each counts.
    """

    def fetch(name: str, limit: int = MOST_REPORTS, **wanted: Any) -> Sequence[dg.EventLogRecord]:
        ascending = "after_storage_id" in wanted
        wanted_records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(name), **wanted)
        return context.instance.fetch_materializations(wanted_records, limit=limit, ascending=ascending).records

    if context.cursor:
        found = [(name, record) for name in reports for record in fetch(name, after_storage_id=int(context.cursor))]
        looked_at = sorted(found, key=lambda one: one[1].storage_id)[:MOST_REPORTS]
        cursor: str | None = str(looked_at[-1][1].storage_id) if looked_at else context.cursor
    else:
        last = max((record.storage_id for name in reports for record in fetch(name, limit=1)), default=0)
        looked_at = [
            (name, record)
            for name in reports
            for dataset in datasets
            for record in reversed(fetch(name, asset_partitions=[dataset], before_storage_id=last + 1))
        ]
        cursor = str(last) if last else None
    newest = {}
    for name, record in looked_at:
        assert record.asset_materialization is not None
        metadata = {key: value.value for key, value in record.asset_materialization.metadata.items()}
        if "verdict" in metadata and record.partition_key:  # otherwise it was reported by hand and has no metadata
            newest[name, record.partition_key] = metadata
    return newest, cursor


def start_demo(demo: dg.JobDefinition, everything: Any) -> dg.SensorDefinition:
    """The sensor that requests the job ``everything`` for the demo data set after each run of the job ``demo``."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="start_demo",
        monitored_jobs=[demo],
        request_job=everything,
        minimum_interval_seconds=DEMO_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs `everything` for the demo data set after the job `demo` was launched.",
    )
    def start_demo(context: dg.RunStatusSensorContext) -> dg.RunRequest:
        asked_by = context.dagster_run.run_id
        return dg.RunRequest(run_key=asked_by, partition_key=DEMO, tags={"rarec/reason": f"job demo, run {asked_by}"})

    return start_demo


def notify_failure(installation: Installation) -> dg.SensorDefinition:
    """The sensor that reports failed runs: in the daemon's log, and to RAREC_WEBHOOK if that is set."""

    @dg.run_failure_sensor(
        name="notify_failure",
        default_status=dg.DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=True,  # runs of `make run` belong to none
        description="Writes failed runs to the daemon's log and posts them as JSON to RAREC_WEBHOOK if that is set.",
    )
    def notify_failure(context: dg.RunFailureSensorContext) -> None:
        if _is_ours(context):
            failed = [event for event in context.get_step_failure_events() if event.is_step_failure]
            error = _message(failed[0]) if failed else context.failure_event.message or ""
            _notify(context, installation, "failed", [event.step_key or "" for event in failed], error)

    return notify_failure


def notify_warning(installation: Installation) -> dg.SensorDefinition:
    """The sensor that reports, in the same way, runs that succeeded although a non-blocking check failed."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="notify_warning",
        default_status=dg.DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=True,
        description="Reports failed checks of runs that succeeded, in the same way as `notify_failure`.",
    )
    def notify_warning(context: dg.RunStatusSensorContext) -> None:
        if not _is_ours(context):
            return
        run_id = context.dagster_run.run_id
        logged = context.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        events = [entry.dagster_event for entry in logged if entry.dagster_event]
        checks = [check for event in events if not (check := event.asset_check_evaluation_data).passed]
        if checks:
            messages = [
                f"check {check.check_name} of {check.asset_key.to_user_string()} failed: "
                + "; ".join(f"{name}: {value.value}" for name, value in check.metadata.items())
                for check in checks
            ]
            steps = [check.asset_key.to_user_string() for check in checks]
            _notify(context, installation, "succeeded with a warning", steps, "; ".join(messages))

    return notify_warning


def _is_ours(context: dg.RunStatusSensorContext) -> bool:
    """Whether job and assets of a run belong to this code location. Others may share the Dagster instance."""
    run, ours = context.dagster_run, context.repository_def
    assert ours is not None
    return ours.has_job(run.job_name) and (run.asset_selection or set()) <= ours.asset_graph.get_all_asset_keys()


def _notify(
    context: dg.RunStatusSensorContext, installation: Installation, how: str, steps: list[str], error: str
) -> None:
    run = context.dagster_run
    payload = {
        "run": run.run_id,
        "job": run.job_name,
        "data_set": run.tags.get("dagster/partition", ""),
        "steps": steps,
        "error": error[:MESSAGE_LENGTH],
        "url": f"{installation.dagster_ui}/runs/{run.run_id}",
    }
    context.log.error(f"{payload['job']} {payload['data_set']} {how}: {payload['error']} ({payload['url']})")
    if installation.webhook:
        try:
            requests.post(installation.webhook, json=payload, timeout=WEBHOOK_TIMEOUT_S).raise_for_status()
        except requests.RequestException as fault:  # its text would show the address, which is a secret
            context.log.error(f"The run could not be posted to RAREC_WEBHOOK: {type(fault).__name__}")


def _message(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error and error.cause:  # the errors that Dagster wraps around it say nothing
        error = error.cause
    return error.message.strip() if error else event.message or ""


def incoming_sensor(job: Any, datasets: Sequence[str], interval_s: int) -> dg.SensorDefinition:
    """The sensor that watches the incoming folders of all data sets and requests `job` when files have settled.

    Whether a file has settled follows from earlier looks at it, which the data set's ledger keeps. A killed tick loses
    at most its own look. Files that two runs are requested for are still ingested once.
    """

    @dg.sensor(
        name="incoming_sensor",
        job=job,
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Requests `ingest` when new interaction files have arrived and are complete.",
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: Workspace) -> Iterator[dg.RunRequest | dg.SkipReason]:
        reasons = []
        asked = False
        for name in datasets:
            try:
                files = workspace.incoming_files(name).listing()
                settled, settling = workspace.ledger(name).look(files, time.time(), workspace.settle_s)
            except Exception as error:  # each kind of store has its own errors; the other data sets continue
                context.log.warning(f"{name}: its incoming files cannot be listed: {one_line(error)}")
                reasons.append(f"{name}: cannot be listed ({type(error).__name__}: {one_line(error)})")
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
    """A request for a run over these files of the data set called `name`, or why there is none now."""
    going_on = instance.get_runs(
        dg.RunsFilter(job_name=job, tags={"dagster/partition": name}, statuses=GOING_ON), limit=1
    )
    if going_on:
        return f"{name}: run {going_on[0].run_id} is in progress"
    text = "\n".join(f"{file.name}\t{file.bytes}\t{file.stamp}" for file in settled)
    identity = hashlib.sha256(text.encode()).hexdigest()[:16]
    earlier = instance.get_run_records(dg.RunsFilter(job_name=job, tags={"rarec/files_id": identity}))
    if earlier:
        age = time.time() - earlier[0].update_timestamp.timestamp()
        wait = min(RETRY_S * 2 ** (len(earlier) - 1), LONGEST_RETRY_S)
        if age < wait:
            last = earlier[0].dagster_run
            return (
                f"{name}: run {last.run_id} over the same files ended as {last.status.value} {age:.0f} s ago; the next "
                f"one is requested in {wait - age:.0f} s"
            )
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
