"""Jobs: which assets run together, and what is done with models in use."""

from typing import Any

import dagster as dg
from pydantic import Field

from assets.framework.stage import refuse_bad_input
from assets.retention import CleanConfig, clean_up
from pipelines.partitions import DEMO
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import TRACKS as MODELS
from resources.mlflow.tracking import MlflowTracking

WINDOW_DAYS = 7  # of the data set's clock that a candidate is compared on, when it is trained for promotion
OPERATIONS, SWEEPS = "operations", "sweeps"

RELLA_GROUPS = ("text", "semantic", "index", "instruction", "language")
TRACKS = {
    "raserec": dg.AssetSelection.groups("raw", "sequences", "recommender")
    | dg.AssetSelection.assets("ranking_baselines", "ranking_metrics"),
    "rella": dg.AssetSelection.groups("raw", *RELLA_GROUPS) | dg.AssetSelection.assets("ctr_metrics"),
}
PROMOTION = dg.AssetSelection.assets("raserec_candidate", "raserec_champion")
RELLA_PROMOTION = dg.AssetSelection.assets("rella_candidate", "rella_champion")
NEWEST = dg.AssetSelection.groups("raw")
IN_USE = PROMOTION | dg.AssetSelection.assets("recommendations")

Job = tuple[str, dg.AssetSelection, dict[str, dict[str, Any]]]
"""What it does, which assets, their settings."""

# From cheap to dear.
CASCADE: dict[str, Job] = {
    "ingest": (
        "Take in the files that arrived, and make tables and sequences anew.",
        NEWEST | dg.AssetSelection.assets("user_sequences"),
        {},
    ),
    "recommend": (
        "Make the lists of the model in use, as after a rollback; train nothing. Seconds.",
        dg.AssetSelection.assets("recommendations"),
        {},
    ),
    "drift": (
        "Measure the champion on the events since its promotion.",
        NEWEST | dg.AssetSelection.assets("drift_report"),
        {},
    ),
    "refresh": (
        "Let the champion's memory take in what happened since; train nothing. Minutes.",
        NEWEST | dg.AssetSelection.assets("refreshed_memory") | IN_USE,
        {"raserec_candidate": {"source": "refreshed"}},
    ),
    "finetune": (
        "Train stage 2 anew on the champion's encoder and its refreshed memory. Tens of minutes.",
        NEWEST | dg.AssetSelection.assets("refreshed_memory", "refreshed_finetuned") | IN_USE,
        {"raserec_candidate": {"source": "finetuned"}, "refreshed_memory": {"window_days": WINDOW_DAYS}},
    ),
    "pretrain": (
        "Train both stages anew on all but the newest days. Hours.",
        NEWEST
        | dg.AssetSelection.assets("user_sequences", "raserec_pretrained", "memory_bank", "raserec_finetuned")
        | IN_USE,
        {"user_sequences": {"window_days": WINDOW_DAYS}},
    ),
    "promote": (
        "Compare the present models with the champion, and let them take its place if they are not worse.",
        IN_USE,
        {},
    ),
    "drift_rella": (
        "Measure ReLLa's champion on the events since its promotion.",
        NEWEST | dg.AssetSelection.assets("rella_drift_report"),
        {},
    ),
    "tune": (
        "Tune an adapter anew on fresh shots, and let it take the place of ReLLa's champion if it is not worse. Hours.",
        TRACKS["rella"] - dg.AssetSelection.assets("ctr_predictions", "ctr_metrics") | RELLA_PROMOTION,
        {},
    ),
    "promote_rella": (
        "Compare the present language model and adapter with ReLLa's champion; they take its place if not worse.",
        RELLA_PROMOTION,
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
        for name, (description, selection, config) in {**jobs, **CASCADE, **TRIALS}.items()
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
    chosen = [track for track in MODELS if track == config.track]
    if not chosen:
        raise InputError(f"track is {config.track}; it must be 'raserec' or 'rella'")
    before, now = tracking.registry(chosen[0], dataset).roll_back(store, config.version or None)
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
