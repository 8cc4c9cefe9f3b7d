"""Sensors: what happens of itself. All but the one that tells of failures are off until somebody turns them on."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import requests

from resources.home import RarecHome

FOLLOWED = ("refresh", "finetune", "pretrain")
INTERVAL_S = 60
WEBHOOK_TIMEOUT_S = 10
MESSAGE_LENGTH = 2000
MOST_REPORTS = 200  # looked at in one tick; the others wait for the next


def follow_drift(jobs: Sequence[Any]) -> dg.SensorDefinition:
    """The sensor that follows drift reports; ``jobs``: those of the cascade, by the verdicts' names."""

    @dg.sensor(
        jobs=[job for job in jobs if job.name in FOLLOWED],
        minimum_interval_seconds=INTERVAL_S,
        description="Asks for the step that the newest drift report of each data set asks for, once a report.",
    )
    def follow_drift(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        after = int(context.cursor) if context.cursor else None
        records = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey("drift_report"), after_storage_id=after),
            limit=MOST_REPORTS,
            ascending=True,
        ).records
        newest = {record.partition_key: record for record in records}
        requests = []
        for partition, record in newest.items():
            assert record.asset_materialization is not None
            metadata = {name: value.value for name, value in record.asset_materialization.metadata.items()}
            verdict = str(metadata["verdict"])
            if verdict in FOLLOWED:
                requests.append(
                    dg.RunRequest(
                        job_name=verdict,
                        partition_key=partition,
                        run_key=f"{partition} {metadata['fingerprint']}",  # a report reused asks for nothing again
                        tags={"rarec/verdict": verdict, "rarec/reason": str(metadata["reason"])},
                    )
                )
        cursor = str(records[-1].storage_id) if records else context.cursor
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    return follow_drift


def notify_failure(home: RarecHome) -> dg.SensorDefinition:
    """The sensor that tells of failed runs: in the daemon's log, and to RAREC_WEBHOOK where it is set."""

    @dg.run_failure_sensor(
        name="notify_failure",
        default_status=dg.DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=False,
        description="Tells of a failed run in the daemon's log, and posts JSON to RAREC_WEBHOOK where that is set.",
    )
    def notify_failure(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        failed = [event for event in context.get_step_failure_events() if event.is_step_failure]
        payload = {
            "run": run.run_id,
            "job": run.job_name,
            "data_set": run.tags.get("dagster/partition", ""),
            "steps": [event.step_key for event in failed],
            "error": (_message(failed[0]) if failed else context.failure_event.message or "")[:MESSAGE_LENGTH],
            "url": f"{home.dagster_ui}/runs/{run.run_id}",
        }
        context.log.error(f"{payload['job']} {payload['data_set']} failed: {payload['error']} ({payload['url']})")
        if home.webhook:
            try:
                requests.post(home.webhook, json=payload, timeout=WEBHOOK_TIMEOUT_S).raise_for_status()
            except requests.RequestException as error:  # its text would hold the address, which is a secret
                context.log.error(f"RAREC_WEBHOOK could not be told: {type(error).__name__}")

    return notify_failure


def _message(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    return data.error.message if data.error else event.message or ""
