"""Group `operations`: ReLLa's champion on what happened since its promotion."""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.champions.drift import ON_CHANGE, conclude, require_clock
from assets.champions.rella_promotion import ask_model, figures_of
from assets.champions.served import as_inputs, open_champion, promotion_window
from assets.data.raw import load_table
from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, resolve, takes, upstream
from assets.framework.training import RETRIES, cancellable
from assets.reports.ranking import links_to
from rarec.champions.drift import RELLA_CHOICE, DriftReport, RellaDriftRule
from rarec.champions.window import item_distances
from rarec.config import Settings
from rarec.data.sequences import IntArray, draw_rows
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

DRIFT_VERSION = "2"


class RellaDriftSettings(RellaDriftRule):
    """What asks for tuning anew, and on how many events that is judged."""

    most_events: int = pydantic.Field(
        default=10_000, ge=2, description="Most new events that the model is asked about, drawn with the seed."
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the draw.")
    batch_tokens: int = pydantic.Field(
        default=16_384, ge=64, description="Most tokens of a padded batch of prompts, as for `ctr_predictions`."
    )


@takes(RellaDriftSettings)
class RellaDriftConfig(StageConfig):
    """Run configuration of `rella_drift_report`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"rella_drift_report": RellaDriftSettings}


@dg.asset(
    deps=["interactions", "rella_champion"],
    group_name="operations",
    kinds={"html"},
    owners=[OWNER],
    code_version=DRIFT_VERSION,
    automation_condition=ON_CHANGE,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def rella_drift_report(
    context: dg.AssetExecutionContext,
    config: RellaDriftConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """ReLLa's champion on the events since its promotion, beside what it reached then, and whether to tune anew."""
    dataset = context.partition_key
    spec = folders.spec(dataset)
    settings = resolve(RellaDriftSettings, config, spec, "rella_drift_report")
    champion, made_of = open_champion(context, store, tracking, "rella")
    interactions = upstream(context, store, "interactions")["interactions"]
    require_clock(interactions, dataset)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        table = load_table(interactions, "interactions")
        times = table["timestamp"].to_numpy()
        then = promotion_window(champion)
        since = then["newest"] + 1
        events = _new_events(table, since, made_of["ctr_samples"].manifest.config["minimum_history"])
        asked = draw_rows(events, settings.most_events, settings.seed)
        rows = table.iloc[asked]
        liked = spec.is_positive(rows["rating"].to_numpy())
        now: dict[str, float] = {}
        if 0 < liked.sum() < len(liked):
            name = f"version {champion.number}"
            answers = ask_model(
                context, launcher, folders, run, name, made_of, interactions, asked, settings.batch_tokens
            )
            now = figures_of(made_of, answers, liked, rows, settings.seed)
            new = times >= since
            now |= item_distances(table["item_id"][~new], table["item_id"][new])
        before = champion.evidence["candidate"]
        verdict, reason = settings.judge(len(events), before, now, (then["users"], rows["user_index"].nunique()))
        report = DriftReport(
            dataset=spec.title,
            data_version=interactions.data_version,
            seeds={},
            split_rule=f"Events from {pd.Timestamp(since, unit='s'):%Y-%m-%d %H:%M:%S} on the data set's clock; "
            f"{len(asked):,} of them are asked for, each just before it happened.",
            then=f"{then['what']}: {then['events']:,}",
            models=(f"version {champion.number}",),
            links=tuple(links_to(run)),
            version=champion.number,
            events=len(events),
            users=table["user_index"].iloc[events].nunique(),
            first=int(times[events].min()) if len(events) else since,
            last=int(times.max()),
            before=before,
            now=now,
            choice=RELLA_CHOICE,
            rule=settings,
            verdict=verdict,
            reason=reason,
        )
        return conclude(report, folder, run)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=DRIFT_VERSION,
        settings={**settings.model_dump(mode="json"), "champion": champion.number, "evidence": champion.evidence},
        inputs={"interactions": interactions, **as_inputs(made_of)},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


def _new_events(table: pd.DataFrame, since: int, minimum_history: int) -> IntArray:
    """Rows from ``since`` (seconds) on that have enough behaviours of their user before them.

    Args:
        table: clean interactions, sorted by (user, time).
    """
    place = table.groupby("user_index", sort=False).cumcount().to_numpy()
    return np.flatnonzero((table["timestamp"].to_numpy() >= since) & (place >= minimum_history))
