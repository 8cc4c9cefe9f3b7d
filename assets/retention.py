"""The step that deletes unused artifacts, based on Dagster's history and MLflow's registry."""

from pathlib import Path

import dagster as dg
import pandas as pd
from pydantic import Field

from assets.framework.build_lock import is_busy
from assets.framework.champion import CHAMPION_PREFIX
from assets.framework.reuse import markdown_table
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracking import MlflowTracking
from resources.retention import (
    ArtifactKey,
    Verdict,
    judge_artifacts,
    judge_leftovers,
    judge_work,
    remove,
    wanted_versions,
)
from resources.workspace import Workspace

SHOWN = 200  # rows of the table in the metadata
ACTIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]


class CleanConfig(dg.Config):
    """What is deleted."""

    days: float = Field(
        default=30,
        gt=0,
        description="Keep artifacts, working folders and the artifacts of registered models for this many days.",
    )
    versions: int = Field(
        default=5,
        ge=1,
        description="Keep the artifacts of this many former champions, so that `rollback` can go back to them.",
    )
    dry_run: bool = Field(default=True, description="Only report what would be deleted.")


@dg.op
def clean_up(
    context: dg.OpExecutionContext,
    config: CleanConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    workspace: Workspace,
) -> None:
    """Delete expired artifacts and working folders, but nothing that is in use, nor its inputs."""
    others = context.instance.get_runs(dg.RunsFilter(statuses=ACTIVE))
    others = [run for run in others if run.run_id != context.run_id]
    if not config.dry_run and others:
        named = ", ".join(f"{run.run_id} ({run.job_name})" for run in others)
        raise dg.Failure(
            "other runs are in progress and may read what would be deleted; run this again when they have ended. If "
            f"the process of one is gone, terminate that run on Dagster's page: {named}",
            allow_retries=False,
        )
    try:
        held = store.survey()
        in_use = {**_materialised(context.instance), **_registered(tracking, config)}
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    for partition, paths in held.damaged.items():
        context.log.warning(
            f"Nothing of {partition} is deleted while a manifest is damaged: the artifact's inputs are unknown. "
            f"Materialise it again with force, or delete its folder if nothing needs it: {', '.join(paths)}"
        )
    artifacts = judge_artifacts(held.manifests, in_use, config.days, CHAMPION_PREFIX, held.damaged)
    left = judge_leftovers(held.leftovers, config.days, held.damaged)
    work = judge_work(Path(workspace.work), config.days, is_busy)
    verdicts = [*artifacts.values(), *left.values(), *work.values()]
    going = [one for one in verdicts if not one.kept_for]
    if not config.dry_run:
        remove(store, artifacts, left, work)
    word = "would go" if config.dry_run else "gone"
    total = sum(one.bytes for one in going)
    context.log.info(f"{len(going)} of {len(verdicts)} {word}, {total / 2**20:,.1f} MiB")
    context.add_output_metadata(
        {
            word: len(going),
            "MiB": round(total / 2**20, 1),
            "kept": len(verdicts) - len(going),
            "verdicts": dg.MetadataValue.md(_table(verdicts, word)),
        }
    )


def _materialised(instance: dg.DagsterInstance) -> dict[ArtifactKey, str]:
    """The last artifact of every asset and data set."""
    found = {}
    for key in instance.all_asset_keys():
        for partition in instance.get_materialized_partitions(key):
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
            ).records
            for record in records:
                assert record.asset_materialization is not None
                if "fingerprint" in record.asset_materialization.metadata:
                    fingerprint = str(record.asset_materialization.metadata["fingerprint"].value)
                    found[key.to_user_string(), partition, fingerprint] = "materialised last"
    return found


def _registered(tracking: MlflowTracking, config: CleanConfig) -> dict[ArtifactKey, str]:
    """The artifacts of all registered versions, of every data set and track, that are in use or may be again."""
    found: dict[ArtifactKey, str] = {}
    for registry in tracking.registries():
        versions = registry.versions()
        wanted = wanted_versions(versions, registry.champion(), config.versions, config.days)
        numbered = {version.number: version for version in versions}
        for number, why in wanted.items():
            for asset, fingerprint in numbered[number].artifacts.items():
                found.setdefault((asset, registry.dataset, fingerprint), f"version {number} of {registry.name} {why}")
    return found


def _table(verdicts: list[Verdict], word: str) -> str:
    largest = sorted(verdicts, key=lambda one: (bool(one.kept_for), -one.bytes))[:SHOWN]
    rows = [(one.what, f"{one.bytes / 2**20:,.1f}", one.kept_for or word) for one in largest]
    return markdown_table(pd.DataFrame(rows, columns=["what", "MiB", "reason"]))
