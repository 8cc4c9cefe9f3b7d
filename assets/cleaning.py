"""What is in use, by Dagster's history and MLflow's registry, and the step that deletes what is not."""

from collections.abc import Collection
from pathlib import Path

import dagster as dg
import pandas as pd
from pydantic import Field

from assets.stage import markdown_table
from assets.turns import is_busy
from rarec.errors import InputError
from resources.artifacts import ArtifactStore
from resources.cleaning import Identity, Verdict, judge_artifacts, judge_work, remove
from resources.folders import Folders, known_specs
from resources.registry import TRACKS
from resources.tracking import MlflowTracking

SHOWN = 200  # rows of the table in the metadata
ACTIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]


class CleanConfig(dg.Config):
    """What goes."""

    days: float = Field(default=30, gt=0, description="Artifacts and working folders younger than this stay.")
    dry_run: bool = Field(default=True, description="Only tell what would go.")


@dg.op
def clean_up(
    context: dg.OpExecutionContext,
    config: CleanConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> None:
    """Delete expired artifacts and working folders; never what is in use, nor what that was made from."""
    others = context.instance.get_runs(dg.RunsFilter(statuses=ACTIVE))
    others = [run for run in others if run.run_id != context.run_id]
    if not config.dry_run and others:
        named = ", ".join(f"{run.run_id} ({run.job_name})" for run in others)
        raise dg.Failure(
            "other runs are in progress, which may read what nobody refers to any more; clean up when they have ended, "
            f"or terminate on Dagster's page those whose process is gone: {named}",
            allow_retries=False,
        )
    try:
        manifests, damaged = list(store.manifests()), store.damaged_manifests()
        # Also of data sets whose file is absent at the moment: their models are registered all the same.
        datasets = {*known_specs(Path(folders.datasets)), *(one.partition for one in manifests)}
        in_use = {*_materialised(context.instance), *_registered(tracking, datasets)}
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    for partition, paths in damaged.items():
        context.log.warning(
            f"Nothing of {partition} goes while a manifest is damaged, since what that artifact was made from is not "
            f"known: materialise it again with force, or delete its folder if nothing needs it: {', '.join(paths)}"
        )
    artifacts = judge_artifacts(manifests, in_use, config.days, damaged)
    work = judge_work(Path(folders.work), config.days, is_busy)
    verdicts = [*artifacts.values(), *work.values()]
    going = [one for one in verdicts if not one.kept_for]
    if not config.dry_run:
        remove(store, artifacts, work)
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


def _materialised(instance: dg.DagsterInstance) -> set[Identity]:
    """The artifact that every asset materialised last, for every data set."""
    found = set()
    for key in instance.all_asset_keys():
        for partition in instance.get_materialized_partitions(key):
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
            ).records
            for record in records:
                assert record.asset_materialization is not None
                if "fingerprint" in record.asset_materialization.metadata:
                    fingerprint = str(record.asset_materialization.metadata["fingerprint"].value)
                    found.add((key.to_user_string(), partition, fingerprint))
    return found


def _registered(tracking: MlflowTracking, datasets: Collection[str]) -> set[Identity]:
    """What the registered versions of these data sets' models are made of."""
    return {
        (asset, dataset, fingerprint)
        for dataset in datasets
        for track in TRACKS
        for version in tracking.registry(track, dataset).versions()
        for asset, fingerprint in version.artifacts.items()
    }


def _table(verdicts: list[Verdict], word: str) -> str:
    largest = sorted(verdicts, key=lambda one: (bool(one.kept_for), -one.bytes))[:SHOWN]
    rows = [(one.what, f"{one.bytes / 2**20:,.1f}", one.kept_for or word) for one in largest]
    return markdown_table(pd.DataFrame(rows, columns=["what", "MiB", "why it stays"]))
