"""Jobs: which assets run together for a data set, and the operations on the models in use."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import dagster as dg
from pydantic import Field

import assets
from assets.champions.track import CHAMPION_TRACKS
from assets.framework.configuration import settle
from assets.framework.lineage import TRACK_JOBS
from assets.framework.refusals import refuse_bad_input
from assets.framework.stage import STAGES, check_declarations
from assets.retention import CleanConfig, clean_up
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import promote_job
from resources.mlflow.tracking import MlflowTracking

# Loading the assets fills STAGES and CHAMPION_TRACKS, which jobs, schedules and sensors are made from.
ASSETS = [one for one in dg.load_assets_from_package_module(assets) if isinstance(one, dg.AssetsDefinition)]
CHECKS = list(dg.load_asset_checks_from_package_module(assets))
check_declarations()

WINDOW_DAYS = 7  # newest days of the data set's clock, held out so that a candidate can be compared on them
DEMO = "demo"


def dataset_partitions(names: Iterable[str]) -> dg.StaticPartitionsDefinition:
    """The one partition dimension: a partition per data set, in alphabetical order."""
    return dg.StaticPartitionsDefinition(sorted(names))


NOT_IN_TRACKS = ("operations", "sweeps", "peers")  # groups that no job of a whole track builds


def track_selection(track: str) -> dg.AssetSelection:
    """Every asset of a track, by the tag of its stage, and the tables that both tracks begin with."""
    own = [one for one in STAGES.values() if one.track == track or one.group == "raw"]
    return dg.AssetSelection.assets(*(name for one in own if one.group not in NOT_IN_TRACKS for name in one.assets))


NEWEST = dg.AssetSelection.groups("raw")


class Job(NamedTuple):
    """What a job does, which assets it builds, and their settings."""

    description: str
    selection: dg.AssetSelection
    config: dict[str, dict[str, Any]] = {}  # noqa: RUF012  a default that nobody changes


def promotion(track: str) -> dg.AssetSelection:
    """Candidate and champion of a track, and the assets that are rebuilt when the champion changes."""
    return dg.AssetSelection.assets(f"{track}_candidate", f"{track}_champion", *CHAMPION_TRACKS[track].follows)


def drift_job(track: str) -> str:
    """Name of the job with a track's drift report."""
    return "drift" if track == "raserec" else f"drift_{track}"


def champion_jobs() -> dict[str, Job]:
    """Two jobs for every track: drift report and promotion."""
    jobs: dict[str, Job] = {}
    for name, track in CHAMPION_TRACKS.items():
        jobs[drift_job(name)] = Job(
            f"Measure the {name} champion on the events since its promotion.",
            NEWEST | dg.AssetSelection.assets(track.drift_asset),
        )
        jobs[promote_job(name)] = Job(
            f"Compare the current {name} model with its champion, and promote it if it is not worse.",
            promotion(name),
        )
    return jobs


def cascade() -> dict[str, Job]:
    """What keeps a model in use up to date, from cheap to expensive."""
    in_use = promotion("raserec")
    return {
        "ingest": Job(
            "Ingest new files, and rebuild tables and sequences.",
            NEWEST | dg.AssetSelection.assets("user_sequences"),
        ),
        "recommend": Job(
            "Make recommendations with the model in use, for example after a rollback. Trains nothing. Seconds.",
            dg.AssetSelection.assets("recommendations"),
        ),
        **champion_jobs(),
        "refresh": Job(
            "Add all new events to the champion's memory. Trains nothing. Minutes.",
            NEWEST | dg.AssetSelection.assets("refreshed_memory") | in_use,
            {"raserec_candidate": {"source": "refreshed"}},
        ),
        "finetune": Job(
            "Retrain stage 2 on the champion's encoder and its refreshed memory. Tens of minutes.",
            NEWEST | dg.AssetSelection.assets("refreshed_memory", "refreshed_finetuned") | in_use,
            {"raserec_candidate": {"source": "finetuned"}, "refreshed_memory": {"window_days": WINDOW_DAYS}},
        ),
        "pretrain": Job(
            "Retrain both stages on all but the newest days. Hours.",
            NEWEST
            | dg.AssetSelection.assets("user_sequences", "raserec_pretrained", "memory_bank", "raserec_finetuned")
            | in_use,
            {"user_sequences": {"window_days": WINDOW_DAYS}},
        ),
        "tune": Job(
            "Tune an adapter on a new draw of samples, and promote it if it is not worse than ReLLa's champion. Hours.",
            track_selection("rella") - dg.AssetSelection.assets("ctr_predictions", "ctr_baselines", "ctr_metrics")
            | promotion("rella"),
        ),
    }


TRIALS: dict[str, Job] = {
    "peers": Job(
        "Train other libraries' rankers on the same split, and set them beside ours. Needs `make peers`. Hours.",
        track_selection("raserec") | dg.AssetSelection.assets("peer_rankings", "peer_metrics"),
    ),
    "peers_rella": Job(
        "Train other libraries' click models on the same samples, and set them beside ours. Needs `make peers`. Hours.",
        track_selection("rella")
        | dg.AssetSelection.assets("peer_predictions", "click_predictions", "peer_ctr_metrics"),
    ),
    "sweep": Job(
        "Compare settings on validation figures: stage 2 with several values of K, alpha and beta.",
        dg.AssetSelection.assets("raserec_sweep"),
    ),
    "sweep_rella": Job(
        "Compare settings on validation figures: adapters with several numbers of shots and behaviours "
        "and learning rates.",
        dg.AssetSelection.assets("rella_sweep"),
    ),
}


def trains(selection: dg.AssetSelection) -> bool:
    """Whether a training is among the assets that this selects."""
    training = [name for one in STAGES.values() if one.trains for name in one.assets]
    return bool((selection & dg.AssetSelection.assets(*training)).resolve(ASSETS))


def launchpad(job: Job, spec: DatasetSpec) -> dict[str, Any]:
    """Run configuration of a job for a data set: its own, and the settings that a person changes, as in force."""
    selected = {key.to_user_string() for key in job.selection.resolve(ASSETS)}
    ops = {}
    for one in STAGES.values():
        given = {name: value for asset in one.assets for name, value in job.config.get(asset, {}).items()}
        if selected & set(one.assets) and (one.shown or given):
            settings = settle(one.settings, given, spec, one.name, one.defaults_of)
            ops[one.name] = {"config": {**settings.model_dump(mode="json", include=set(one.shown)), **given}}
    return {"ops": ops} if ops else {}


def asset_jobs(
    partitions: dg.StaticPartitionsDefinition,
    specs: Callable[[], Mapping[str, DatasetSpec]],
    light: dg.ExecutorDefinition | None = dg.in_process_executor,
) -> list[Any]:
    """One job per track, `everything` except operations and sweeps, the updates, and the sweeps.

    Args:
        partitions: The data sets.
        specs: Reads their declarations; one that cannot be used is left out.
        light: Executor of the jobs without a training. By default they run in one process: a process for each step
            would load the code every time, which takes longer than the step.
    """
    jobs: dict[str, Job] = {
        track: Job(f"The whole {track} track of one data set.", track_selection(track)) for track in TRACK_JOBS
    }
    jobs["everything"] = Job(
        "Every asset of one data set except operations on the model in use, sweeps and other libraries.",
        dg.AssetSelection.all() - dg.AssetSelection.groups(*NOT_IN_TRACKS),
    )

    def configured(job: Job, dataset: str) -> dict[str, Any]:
        spec = specs().get(dataset)
        own = {"ops": {asset: {"config": settings} for asset, settings in job.config.items()}}
        return launchpad(job, spec) if spec else own

    return [
        dg.define_asset_job(
            name,
            selection=job.selection,
            description=job.description,
            config=dg.PartitionedConfig(partitions, run_config_for_partition_key_fn=partial(configured, job)),
            executor_def=None if trains(job.selection) else light,
        )
        for name, job in {**jobs, **cascade(), **TRIALS}.items()
    ]


class RollbackConfig(dg.Config):
    """Which champion to roll back, and to which version."""

    track: str = Field(default="raserec", description="Track whose champion is taken back.")
    version: int = Field(
        default=0,
        ge=0,
        description="The version to go to, even if it was rolled back before. 0: the one that the champion replaced.",
    )


@dg.op
@refuse_bad_input
def roll_back(
    context: dg.OpExecutionContext, config: RollbackConfig, store: ArtifactStore, tracking: MlflowTracking
) -> None:
    """Move the alias `champion` back."""
    dataset = context.partition_key
    if config.track not in CHAMPION_TRACKS:
        raise InputError(f"track is {config.track}; it must be one of {', '.join(map(repr, CHAMPION_TRACKS))}")
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
"""Jobs without assets that are run by hand: their step and its settings."""


@dg.op
def ask_for_demo(context: dg.OpExecutionContext) -> None:
    """Succeed, which triggers the sensor `start_demo`. For a job with assets, Dagster would ask for a partition."""
    context.log.info(f"the sensor start_demo now asks for the job everything of {DEMO}")


@dg.job(
    executor_def=dg.in_process_executor,
    description="One click: run `everything` for the synthetic demo data set, through the sensor `start_demo`. "
    "Minutes.",
)
def demo() -> None:
    """The job `demo`."""
    ask_for_demo()


@dg.job(
    executor_def=dg.in_process_executor,
    description="Delete expired artifacts and working folders that nothing refers to. A dry run by default.",
)
def clean() -> None:
    """The job `clean`."""
    clean_up()


def rollback_job(partitions: dg.StaticPartitionsDefinition) -> dg.JobDefinition:
    """The job `rollback`."""

    @dg.job(
        name="rollback",
        partitions_def=partitions,
        executor_def=dg.in_process_executor,
        description="Roll the champion back to the version that it replaced.",
    )
    def rollback() -> None:
        roll_back()

    return rollback
