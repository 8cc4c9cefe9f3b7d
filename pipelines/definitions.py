"""The code location: assets, checks, jobs and resources, bound to the data sets that are declared."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.framework.stage import check_overrides
from pipelines.jobs import ASSETS, CHECKS, asset_jobs, clean, dataset_partitions, demo, rollback_job
from pipelines.pods import step_executor
from pipelines.schedules import weekly_schedules
from pipelines.sensors import follow_drift, incoming_sensor, notify_failure, notify_warning, start_demo
from rarec.data.spec import DatasetSpec, Declared
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracking import MlflowTracking
from resources.settings import Installation
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Workspace, known_specs

datasets_log = logging.getLogger("rarec.datasets")


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
            peers=home.peers,
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


def from_environment(resource: dg.ConfigurableResource[Any]) -> dg.ResourceDefinition:
    """The resource without run configuration: the environment sets it, and the launchpad need not show its paths.

    Dagster's page of resources lists its settings in words; values of `dg.EnvVar` are read when a step starts.
    """
    own = type(resource).model_fields
    lines = [f"- `{name}`: {getattr(resource, name) or 'none'}" for name in own if name != "environment"]
    description = "\n".join(
        [str(type(resource).__doc__), "", *lines, "", "Environment variables set them; see docs/configuration.md."]
    )
    return dg.ResourceDefinition(
        lambda _: resource.process_config_and_initialize(), config_schema={}, description=description
    )


def build_defs(home: Installation | None = None, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The code location for one installation; tests replace resources by name.

    A data set whose file is wrong has a partition, too; its runs fail with the reason, which the log and the assets of
    the group `raw` also tell.

    Raises:
        InputError: a data set or the cron expression of the schedules is invalid.
    """
    home = home or Installation.from_environment()
    declared = usable_specs(home.datasets)
    for fault in declared.faults.values():
        datasets_log.warning("%s", unusable(fault))
    partitions = dataset_partitions(declared.names)

    def bound(spec: dg.AssetSpec) -> dg.AssetSpec:
        description = _with_faults(spec, declared) if spec.group_name == "raw" else spec.description
        return spec.replace_attributes(partitions_def=partitions, description=description)

    assets = dg.map_asset_specs(bound, ASSETS)
    executor = step_executor(home, ASSETS)
    jobs = asset_jobs(partitions, lambda: usable_specs(home.datasets).specs, executor or dg.in_process_executor)
    by_name = {job.name: job for job in jobs}
    return dg.Definitions(
        assets=assets,
        asset_checks=CHECKS,
        jobs=[*jobs, rollback_job(partitions), demo, clean],
        sensors=[
            follow_drift(jobs, sorted(declared.specs)),
            incoming_sensor(by_name["ingest"], sorted(declared.specs), home.incoming_interval_s),
            start_demo(demo, by_name["everything"]),
            notify_failure(home),
            notify_warning(home),
        ],
        schedules=weekly_schedules(home, declared),
        executor=executor,
        resources={
            **{name: from_environment(one) for name, one in default_resources(home).items()},
            **(resource_overrides or {}),
        },
    )


def usable_specs(folder: Path) -> Declared:
    """The data sets that can be used, and why others cannot: a file of ``folder`` is wrong, or sets a default for a
    stage or setting that does not exist.
    """
    declared = known_specs(folder)
    specs, faults = dict[str, DatasetSpec](), dict(declared.faults)
    for name, spec in declared.specs.items():
        try:
            check_overrides(spec)
            specs[name] = spec
        except InputError as error:
            faults[name] = str(error)
    return Declared(specs, faults)


def unusable(fault: str) -> str:
    """The warning about a data set that cannot be used, for those who use others."""
    return f"warning: {fault} Other data sets are not affected."


def _with_faults(spec: dg.AssetSpec, declared: Declared) -> str:
    """The description of an asset, after the reasons why data sets cannot be used."""
    faults = "".join(f"**Not usable:** {fault}\n\n" for fault in declared.faults.values())
    return f"{faults}{spec.description}"


defs = build_defs()
