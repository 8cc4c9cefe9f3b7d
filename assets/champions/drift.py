"""The drift report of every track: the champion on the events since its promotion, and the update that is due."""

from typing import Any

import dagster as dg
import pandas as pd

from assets.champions.track import ON_CHANGE, ChampionTrack
from assets.data.clean import has_clock, load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from assets.reports.publish import links_to, log_report
from rarec.config import Settings
from rarec.errors import InputError
from rarec.reports.drift import DriftReport, drift_markdown, write_drift_report

VERSION = "2"


def drift_stage(track: ChampionTrack[Any, Any]) -> dg.AssetsDefinition:
    """The asset with the track's drift report."""

    def extras(request: Request[Settings]) -> dict[str, Any]:
        version = request.champion.version
        return {"champion": version.number, "evidence": version.evidence}

    def build(job: Job[Any]) -> Outcome:
        champion, interactions = job.champion, job.inputs["interactions"]
        table = load_table(interactions, "interactions")
        then, before = champion.window, champion.version.evidence["candidate"]
        since = then["newest"] + 1
        drift = track.measure(job, champion, table, since)
        times, users = table["timestamp"].to_numpy(), table["user_index"].to_numpy()
        number, rows = champion.version.number, drift.rows
        start = pd.Timestamp(since, unit="s")
        report = DriftReport(
            dataset=job.spec.title,
            data_version=interactions.data_version,
            seeds={},
            split_rule=f"Events from {start:%Y-%m-%d %H:%M:%S} on the data set's clock{drift.how}.",
            then=f"{then['what']}: {then['events']:,}",
            models=(f"version {number}",),
            links=tuple(links_to(job.run)),
            version=number,
            events=len(rows),
            users=len(set(users[rows].tolist())),
            first=int(times[rows].min()) if len(rows) else since,
            last=int(times.max()),
            before=before,
            now=drift.now,
            choice=track.figure,
            rule=job.settings,
            verdict=drift.verdict,
            reason=drift.reason,
        )
        paths = write_drift_report(report, job.folder)
        log_report(job.run, paths)
        values = {"verdict": report.verdict, "reason": report.reason, "champion": number}
        values |= {"new events": report.events, **report.now}
        metrics = {f"now/{name}": value for name, value in report.now.items()}
        metrics |= {f"promotion/{name}": value for name, value in report.before.items()}
        return Outcome(values, {"figures": drift_markdown(report)}, metrics, {"report": paths.html.name})

    build.__doc__ = (
        f"The {track.name} champion on the events since its promotion, compared with its figures at that time, and the "
        "update that is due."
    )
    return stage(
        name=track.drift_asset,
        group="operations",
        track=track.name,
        version=VERSION,
        settings=track.drift,
        inputs=("interactions",),
        after=(f"{track.name}_champion",),
        champion=track.name,
        kinds={"html"},
        trains=track.has_workers,
        precision=False,
        prepare=_require_clock,
        extras=extras,
        automation=ON_CHANGE,
        read_weekly=True,
    )(build)


def _require_clock(request: Request[Settings]) -> None:
    """InputError if the data set has no clock."""
    if not has_clock(request.inputs["interactions"]):
        raise InputError(
            f"drift cannot be measured for {request.dataset}: it has no clock, so no event is newer than its champion; "
            "remove it from RAREC_SCHEDULED"
        )
