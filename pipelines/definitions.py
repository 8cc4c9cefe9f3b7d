"""The code location: assets, checks, jobs and resources, bound to the data sets that are declared."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.framework.configuration import make_settings
from assets.framework.stage import STAGES
from pipelines.jobs import ASSETS, CHECKS, asset_jobs, clean, dataset_partitions, demo, rollback_job
from pipelines.pods import step_executor
from pipelines.schedules import weekly_schedules
from pipelines.sensors import follow_drift, incoming_sensor, notify_failure, notify_warning, start_demo
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracking import MlflowTracking
from resources.settings import Installation
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Workspace, known_specs


def default_resources(home: Installation) -> dict[str, Any]:
    """Resources as configured by the environment; by default everything is embedded under RAREC_HOME."""
    return {
        "store": ArtifactStore(root=home.artifacts, cache=str(home.cache / "artifacts")),
        "tracking": MlflowTracking(
            tracking_uri=home.tracking_uri, ui_url=home.mlflow_ui, artifact_root=str(home.mlflow / "artifacts")
        ),
        "workspace": Workspace(
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
        InputError: a data set's file is wrong, or sets a default for a stage or setting that does not exist; or a data
            set or the cron expression of the schedules is invalid.
    """
    home = home or Installation.from_environment()
    specs = known_specs(home.datasets)
    for spec in specs.values():
        check_overrides(spec)
    partitions = dataset_partitions(specs)
    assets = dg.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=partitions), ASSETS)
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
        executor=step_executor(home, ASSETS),
        resources={**default_resources(home), **(resource_overrides or {})},
    )


def check_overrides(spec: DatasetSpec) -> None:
    """Refuse defaults for stages that have no settings, and values that the stage's settings refuse."""
    known = {one.name: one.settings for one in STAGES.values() if one.makes_artifact and one.settings.model_fields}
    for stage, values in spec.overrides.items():
        if stage not in known:
            raise InputError(
                f"{spec.name}.toml: [overrides.{stage}]: no such stage; stages with settings: {', '.join(known)}"
            )
        make_settings(known[stage], values, f"{spec.name}.toml: [overrides.{stage}]")


defs = build_defs()
