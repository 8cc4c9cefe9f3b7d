"""The code location: assets, checks, jobs and resources, bound to the data sets that are declared."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from assets.baselines import ranking as baselines
from assets.champions import drift, promotion, rella_drift, rella_promotion
from assets.data import raw, sequences
from assets.framework.stage import make_settings
from assets.raserec import recommender
from assets.rella import instruction, language, semantic, text
from assets.reports import ctr as ctr_reports
from assets.reports import ranking as reports
from assets.studies import sweeps
from pipelines.jobs import RELLA_GROUPS, asset_jobs, clean, demo, rollback_job
from pipelines.partitions import dataset_partitions
from pipelines.pods import step_executor
from pipelines.schedules import weekly_schedules
from pipelines.sensors import follow_drift, incoming_sensor, notify_failure, notify_warning, start_demo
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracking import MlflowTracking
from resources.settings import Installation
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders, known_specs

# What is read every week, and by when Dagster's asset page tells that it is late.
KEPT_FRESH = ("recommendations", "ranking_metrics", "ctr_metrics", "drift_report", "rella_drift_report")
FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=9), warn_window=timedelta(days=8))

ASSET_MODULES = (
    raw,
    sequences,
    recommender,
    text,
    semantic,
    instruction,
    language,
    baselines,
    reports,
    ctr_reports,
    promotion,
    rella_promotion,
    drift,
    rella_drift,
    sweeps,
)
CHECKS = [
    *raw.CHECKS,
    *sequences.CHECKS,
    *recommender.CHECKS,
    *text.CHECKS,
    *semantic.CHECKS,
    *promotion.CHECKS,
    *rella_promotion.CHECKS,
]
STAGE_SETTINGS = {
    **sequences.STAGE_SETTINGS,
    **recommender.STAGE_SETTINGS,
    **text.STAGE_SETTINGS,
    **semantic.STAGE_SETTINGS,
    **instruction.STAGE_SETTINGS,
    **language.STAGE_SETTINGS,
    **baselines.STAGE_SETTINGS,
    **ctr_reports.STAGE_SETTINGS,
    **promotion.STAGE_SETTINGS,
    **rella_promotion.STAGE_SETTINGS,
    **drift.STAGE_SETTINGS,
    **rella_drift.STAGE_SETTINGS,
    **sweeps.STAGE_SETTINGS,
}


def track_of(spec: dg.AssetSpec) -> str:
    """raserec, rella or both: by which an asset is found in Dagster (`tag:track=rella`)."""
    name, group = spec.key.to_user_string(), spec.group_name
    if group == "raw" or name == "comparison_report":
        return "both"
    if group in RELLA_GROUPS or name.startswith(("rella_", "ctr_")):
        return "rella"
    return "raserec"


def default_resources(home: Installation) -> dict[str, Any]:
    """Resources that the environment asks for; with nothing set, all is embedded under RAREC_HOME."""
    return {
        "store": ArtifactStore(root=home.artifacts, cache=str(home.cache / "artifacts")),
        "tracking": MlflowTracking(
            tracking_uri=home.tracking_uri, ui_url=home.mlflow_ui, artifact_root=str(home.mlflow / "artifacts")
        ),
        "folders": Folders(
            data=str(home.data),
            datasets=str(home.datasets),
            cache=str(home.cache),
            work=str(home.work),
            incoming=home.incoming,
            ledgers=str(home.ledgers),
            settle_s=home.settle_s,
        ),
        "launcher": TrainingLauncher(
            nproc=home.nproc,
            threads_per_process=home.threads,
            hostfile=home.hostfile,
            rendezvous=home.rendezvous,
            nodes=home.nodes,
            announced=str(home.announced),
            environment={name: dg.EnvVar(name) for name in home.worker_environment},
            remote_shell=home.remote_shell,
            heartbeat_s=home.heartbeat_s,
            engine=home.engine.model_dump(exclude_unset=True),
        ),
    }


def build_defs(home: Installation | None = None, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The code location for one installation; tests replace resources by name.

    Raises:
        InputError: a data set's file is wrong, or sets a default for a stage or setting that does not exist; a data
            set or a time of the schedules is none.
    """
    home = home or Installation.from_environment()
    specs = known_specs(home.datasets)
    for spec in specs.values():
        check_overrides(spec)
    partitions = dataset_partitions(specs)
    found = [a for a in dg.load_assets_from_modules(ASSET_MODULES) if isinstance(a, dg.AssetsDefinition)]
    training = {key for asset in found if asset.op.pool for key in asset.keys}
    assets = dg.map_asset_specs(
        lambda spec: spec.replace_attributes(
            partitions_def=partitions,
            tags={**spec.tags, "track": track_of(spec), "compute": "training" if spec.key in training else "light"},
            freshness_policy=FRESH if spec.key.to_user_string() in KEPT_FRESH else None,
        ),
        found,
    )
    jobs = asset_jobs(partitions)
    by_name = {job.name: job for job in jobs}
    return dg.Definitions(
        assets=assets,
        asset_checks=CHECKS,
        jobs=[*jobs, rollback_job(partitions), demo, clean],
        sensors=[
            follow_drift(jobs, sorted(specs)),
            incoming_sensor(by_name["ingest"], sorted(specs), home.incoming_interval_s),
            start_demo(demo, by_name["everything"]),
            notify_failure(home),
            notify_warning(home),
        ],
        schedules=weekly_schedules(home, specs),
        executor=step_executor(home, found),
        resources={**default_resources(home), **(resource_overrides or {})},
    )


def check_overrides(spec: DatasetSpec) -> None:
    """Refuse defaults for stages that have no settings, and values that the stage's settings refuse."""
    for stage, values in spec.overrides.items():
        settings = STAGE_SETTINGS.get(stage)
        if settings is None:
            known = ", ".join(STAGE_SETTINGS)
            raise InputError(f"{spec.name}.toml: [overrides.{stage}]: no such stage; stages with settings: {known}")
        make_settings(settings, values, f"{spec.name}.toml: [overrides.{stage}]")


defs = build_defs()
