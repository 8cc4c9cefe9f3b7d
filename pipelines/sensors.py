"""Sensors: what happens of itself. All are off until somebody turns them on."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

FOLLOWED = ("refresh", "finetune", "pretrain")
INTERVAL_S = 60
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
