"""Jobs: which assets run together for which data set, and what is done with models in use."""

from collections.abc import Iterable
from typing import Any

import dagster as dg
from pydantic import Field

from assets.champions.track import TRACKS as CHAMPIONS
from assets.framework.stage import TRACK_OF_GROUP, refuse_bad_input
from assets.retention import CleanConfig, clean_up
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import promote_job
from resources.mlflow.tracking import MlflowTracking

WINDOW_DAYS = 7  # of the data set's clock that a candidate is compared on, when it is trained for promotion
OPERATIONS, SWEEPS = "operations", "sweeps"
DEMO = "demo"


def dataset_partitions(names: Iterable[str]) -> dg.StaticPartitionsDefinition:
    """The one partition dimension: a partition per data set, in alphabetical order."""
    return dg.StaticPartitionsDefinition(sorted(names))


def _groups(track: str) -> dg.AssetSelection:
    return dg.AssetSelection.groups(*(group for group, of in TRACK_OF_GROUP.items() if of in (track, "both")))


TRACKS = {
    "raserec": _groups("raserec") | dg.AssetSelection.assets("ranking_baselines", "ranking_metrics"),
    "rella": _groups("rella") | dg.AssetSelection.assets("ctr_metrics"),
}
NEWEST = dg.AssetSelection.groups("raw")

Job = tuple[str, dg.AssetSelection, dict[str, dict[str, Any]]]
"""What it does, which assets, their settings."""


def promotion(track: str) -> dg.AssetSelection:
    """Candidate and champion of a track, and what is made again when the champion changes."""
    return dg.AssetSelection.assets(f"{track}_candidate", f"{track}_champion", *CHAMPIONS[track].follows)


def drift_job(track: str) -> str:
    """Name of the job that measures a track's champion."""
    return "drift" if track == "raserec" else f"drift_{track}"


def champion_jobs() -> dict[str, Job]:
    """Of every track: its champion measured, and its candidate promoted."""
    jobs: dict[str, Job] = {}
    for name, track in CHAMPIONS.items():
        jobs[drift_job(name)] = (
            f"Measure the {name} champion on the events since its promotion.",
            NEWEST | dg.AssetSelection.assets(track.drift_asset),
            {},
        )
        jobs[promote_job(name)] = (
            f"Compare the present {name} model with its champion; it takes the champion's place if it is not worse.",
            promotion(name),
            {},
        )
    return jobs


def cascade() -> dict[str, Job]:
    """What keeps a model in use up to date, from cheap to expensive."""
    in_use = promotion("raserec")
    return {
        "ingest": (
            "Take in the files that arrived, and make tables and sequences again.",
            NEWEST | dg.AssetSelection.assets("user_sequences"),
            {},
        ),
        "recommend": (
            "Make the lists of the model in use, as after a rollback; train nothing. Seconds.",
            dg.AssetSelection.assets("recommendations"),
            {},
        ),
        **champion_jobs(),
        "refresh": (
            "Let the champion's memory take in what happened since; train nothing. Minutes.",
            NEWEST | dg.AssetSelection.assets("refreshed_memory") | in_use,
            {"raserec_candidate": {"source": "refreshed"}},
        ),
        "finetune": (
            "Train stage 2 again on the champion's encoder and its refreshed memory. Tens of minutes.",
            NEWEST | dg.AssetSelection.assets("refreshed_memory", "refreshed_finetuned") | in_use,
            {"raserec_candidate": {"source": "finetuned"}, "refreshed_memory": {"window_days": WINDOW_DAYS}},
        ),
        "pretrain": (
            "Train both stages again on all but the newest days. Hours.",
            NEWEST
            | dg.AssetSelection.assets("user_sequences", "raserec_pretrained", "memory_bank", "raserec_finetuned")
            | in_use,
            {"user_sequences": {"window_days": WINDOW_DAYS}},
        ),
        "tune": (
            "Tune an adapter again on fresh samples; it takes the place of ReLLa's champion if it is not worse. Hours.",
            TRACKS["rella"] - dg.AssetSelection.assets("ctr_predictions", "ctr_metrics") | promotion("rella"),
            {},
        ),
    }


TRIALS: dict[str, Job] = {
    "sweep": (
        "Try settings against each other on validation figures: stage 2 with several K, alpha and beta.",
        dg.AssetSelection.assets("raserec_sweep"),
        {},
    ),
    "sweep_rella": (
        "Try settings against each other on validation figures: adapters with several numbers of shots and behaviours "
        "and learning rates.",
        dg.AssetSelection.assets("rella_sweep"),
        {},
    ),
}


def asset_jobs(partitions: dg.StaticPartitionsDefinition) -> list[Any]:
    """One job a track, `everything` but operations and sweeps, the cascade, and the sweeps."""
    jobs: dict[str, Job] = {
        track: (f"The whole {track} track of one data set.", selection, {}) for track, selection in TRACKS.items()
    }
    jobs["everything"] = (
        "Every asset of one data set but those that concern the model in use, and sweeps.",
        dg.AssetSelection.all() - dg.AssetSelection.groups(OPERATIONS, SWEEPS),
        {},
    )
    return [
        dg.define_asset_job(
            name,
            selection=selection,
            partitions_def=partitions,
            description=description,
            config={"ops": {asset: {"config": settings} for asset, settings in config.items()}},
        )
        for name, (description, selection, config) in {**jobs, **cascade(), **TRIALS}.items()
    ]


class RollbackConfig(dg.Config):
    """Which champion is taken back, and in favour of which version."""

    track: str = Field(default="raserec", description="raserec or rella.")
    version: int = Field(
        default=0,
        ge=0,
        description="The version to go to, though it was rolled back before; 0: the one that was replaced.",
    )


@dg.op
@refuse_bad_input
def roll_back(
    context: dg.OpExecutionContext, config: RollbackConfig, store: ArtifactStore, tracking: MlflowTracking
) -> None:
    """Move the alias `champion` back."""
    dataset = context.partition_key
    if config.track not in CHAMPIONS:
        raise InputError(f"track is {config.track}; it must be one of {', '.join(map(repr, CHAMPIONS))}")
    before, now = tracking.registry(config.track, dataset).roll_back(store, config.version or None)
    context.log.info(f"{now.model}: champion is version {now.number} again, no longer {before.number}")
    metadata: dict[str, dg.RawMetadataValue] = {
        "version": now.number,
        "before": f"version {before.number}",
        "reason": "rolled back",
        "moved": True,
    }
    context.log_event(dg.AssetMaterialization(f"{config.track}_champion", partition=dataset, metadata=metadata))


OF_ONE_STEP: dict[str, tuple[str, type[dg.Config]]] = {
    "rollback": ("roll_back", RollbackConfig),
    "clean": ("clean_up", CleanConfig),
}
"""Jobs of no assets that one runs by hand: their step and its settings."""


@dg.op
def ask_for_demo(context: dg.OpExecutionContext) -> None:
    """Succeed, which the sensor `start_demo` waits for; Dagster's page would ask for a partition of a job of assets."""
    context.log.info(f"the sensor start_demo now asks for the job everything of {DEMO}")


@dg.job(
    description="One click: `everything` of the synthetic demo data set, by way of the sensor `start_demo`. Minutes."
)
def demo() -> None:
    """The job `demo`."""
    ask_for_demo()


@dg.job(description="Delete expired artifacts and working folders that nothing refers to. A dry run by default.")
def clean() -> None:
    """The job `clean`."""
    clean_up()


def rollback_job(partitions: dg.StaticPartitionsDefinition) -> dg.JobDefinition:
    """The job `rollback`."""

    @dg.job(name="rollback", partitions_def=partitions, description="Take the champion back; the one before it serves.")
    def rollback() -> None:
        roll_back()

    return rollback
