"""Group `operations`: the champion among what happened since: its memory refreshed, its figures measured."""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.champions.served import as_inputs, open_champion, promotion_window, served
from assets.data.raw import load_counts, load_table
from assets.data.sequences import SequenceConfig, SequenceSettings, window_start
from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, resolve, takes, upstream
from assets.framework.training import RETRIES, cancellable, train, training_outcome
from assets.raserec.recommender import VALIDATION_FIGURES, VALIDATION_SHOWN, finetune_job
from assets.reports.ranking import links_to, log_report
from rarec.champions.drift import DriftReport, DriftRule, drift_markdown, write_drift_report
from rarec.champions.raserec import unremembered
from rarec.champions.window import CHOICE, item_distances, newest_window, unknown_shares
from rarec.config import Settings
from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.raserec.settings import FinetuneSettings
from rarec.reports.records import Link
from rarec.retrieval.memory import MemoryBank
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import Version
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

REFRESH_VERSION = "1"
REFINETUNE_VERSION = "1"
DRIFT_VERSION = "2"


# For Dagster's automation sensor: once a change of the content of what is measured, whoever brought it.
ON_CHANGE = (
    dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed()).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)


class DriftSettings(DriftRule):
    """What asks for which step, and on how many events that is judged."""

    most_events: int = pydantic.Field(
        default=20_000, ge=1, description="Most new events that the champion is asked for, drawn with the seed."
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the draw.")


@takes(DriftSettings)
class DriftConfig(StageConfig):
    """Run configuration of `drift_report`."""


@takes(FinetuneSettings)
class RefinetuneConfig(StageConfig):
    """Run configuration of `refreshed_finetuned`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "refreshed_memory": SequenceSettings,
    "refreshed_finetuned": FinetuneSettings,
    "drift_report": DriftSettings,
}


@dg.asset(
    deps=["interactions"],
    group_name="operations",
    kinds={"faiss"},
    owners=[OWNER],
    code_version=REFRESH_VERSION,
)
@refuse_bad_input
def refreshed_memory(
    context: dg.AssetExecutionContext,
    config: SequenceConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """The champion's memory bank with all that happened since; new prefixes are encoded, nothing is trained."""
    settings = resolve(SequenceSettings, config, folders.spec(context.partition_key), "refreshed_memory")
    champion, made_of = open_champion(context, store, tracking)
    interactions = upstream(context, store, "interactions")["interactions"]

    def build(folder: Path, run: TrackedRun) -> Outcome:
        model = served(made_of)
        table, clock = load_table(interactions, "interactions"), load_counts(interactions)["time"] == "clock"
        until = window_start(settings, table["timestamp"], clock)
        if until is not None:
            table = table[table["timestamp"] < until]
        translation = model.translate(table, clock)
        bank = model.refreshed(translation)
        bank.save(folder)
        translation.sequences.save(folder)
        translation.user_ids.rename("user_id").to_frame().to_parquet(folder / "users.parquet", index=False)
        kept = len(model.carried(translation))
        values = {
            "champion": champion.number,
            "unseen_since": until or int(table["timestamp"].max()) + 1,
            "memories": len(bank),
            "new memories": len(bank) - kept,
            "no longer valid": len(model.recommender.bank) - kept,
            "unknown items, share of events": float((translation.positions < 0).mean()),
        }
        metrics = {name: value for name, value in values.items() if name not in ("champion", "unseen_since")}
        return Outcome(values, metrics=metrics)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=REFRESH_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs={
            "interactions": interactions,
            **as_inputs(made_of),
            "encoder": made_of["raserec_pretrained"].fingerprint,
        },
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["refreshed_memory"],
    group_name="operations",
    kinds={"pytorch", "deepspeed"},
    owners=[OWNER],
    code_version=REFINETUNE_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def refreshed_finetuned(
    context: dg.AssetExecutionContext,
    config: RefinetuneConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """Stage 2 trained anew on the champion's frozen encoder and its refreshed memory."""
    # The data set's defaults for stage 2 hold here, too.
    settings = resolve(FinetuneSettings, config, folders.spec(context.partition_key), "raserec_finetuned")
    _, made_of = open_champion(context, store, tracking)
    memory = upstream(context, store, "refreshed_memory")["refreshed_memory"]
    encoder = made_of["raserec_pretrained"]

    def build(folder: Path, run: TrackedRun) -> Outcome:
        # Of the memory only what stage 2 may train on: neither validation nor test items.
        bank = MemoryBank.load(memory.path)
        order = np.argsort(bank.prefixes)
        bank.keep(order[np.isin(bank.prefixes[order], UserSequences.load(memory.path).prefixes("train"))])
        place = folders.workdir("refreshed_finetuned", run.fingerprint) / "bank"
        place.mkdir(parents=True, exist_ok=True)
        bank.save(place)
        job = finetune_job(settings, memory.path, encoder, place)
        summary = train(context, launcher, folders, run, "rarec.raserec.finetune", job, folder)
        outcome = training_outcome(run, summary, VALIDATION_FIGURES, VALIDATION_SHOWN)
        outcome.values["unseen_since"] = memory.metadata["values"]["unseen_since"]
        return outcome

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=REFINETUNE_VERSION,
        settings={**settings.model_dump(mode="json"), **launcher.result_settings()},
        inputs={"refreshed_memory": memory, "encoder": encoder.fingerprint},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


@dg.asset(
    deps=["interactions", "raserec_champion"],
    group_name="operations",
    kinds={"html"},
    owners=[OWNER],
    code_version=DRIFT_VERSION,
    automation_condition=ON_CHANGE,
)
@refuse_bad_input
def drift_report(
    context: dg.AssetExecutionContext,
    config: DriftConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """The champion on the events since its promotion, beside what it reached then, and the step that this asks for."""
    dataset = context.partition_key
    spec = folders.spec(dataset)
    rule = resolve(DriftSettings, config, spec, "drift_report")
    champion, made_of = open_champion(context, store, tracking)
    interactions = upstream(context, store, "interactions")["interactions"]
    require_clock(interactions, dataset)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        table = load_table(interactions, "interactions")
        report = _measure(table, made_of, champion, rule, spec.title, interactions.data_version, links_to(run))
        return conclude(report, folder, run)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=DRIFT_VERSION,
        settings={**rule.model_dump(mode="json"), "champion": champion.number, "evidence": champion.evidence},
        inputs={"interactions": interactions, **as_inputs(made_of)},
        force=config.force,
        build=build,
    )
    return result


def require_clock(interactions: Artifact, dataset: str) -> None:
    """InputError where nothing is newer than anything else."""
    if load_counts(interactions)["time"] != "clock":
        raise InputError(f"{dataset} has no clock, so nothing of it is newer than its champion")


def conclude(report: DriftReport, folder: Path, run: TrackedRun) -> Outcome:
    """Write and log the report; what the asset tells of it."""
    paths = write_drift_report(report, folder)
    log_report(run, paths)
    values = {"verdict": report.verdict, "reason": report.reason, "champion": report.version}
    values |= {"new events": report.events, **report.now}
    metrics = {f"now/{name}": value for name, value in report.now.items()}
    metrics |= {f"promotion/{name}": value for name, value in report.before.items()}
    return Outcome(values, {"figures": drift_markdown(report)}, metrics, {"report": paths.html.name})


def _measure(
    table: pd.DataFrame,
    made_of: dict[str, Artifact],
    champion: Version,
    rule: DriftSettings,
    title: str,
    data_version: str,
    links: list[Link],
) -> DriftReport:
    model = served(made_of)
    translation = model.translate(table, clock=True)
    bank = model.carried(translation)
    then = promotion_window(champion)
    since = then["newest"] + 1
    # Like is judged against like: what came new by the protocol of the promotion.
    last_only = then.get("protocol") == "last"
    window = newest_window(table, since)
    like = newest_window(table, since, last_only=True) if last_only else window
    judged = like.drawn(rule.most_events, rule.seed)
    times = table["timestamp"].to_numpy()
    now: dict[str, float] = {}
    if len(window):
        now = unknown_shares(table, window, model.item_ids, model.user_ids)
        new = times >= since
        now |= item_distances(table["item_id"][~new], table["item_id"][new])
    before = champion.evidence["candidate"]
    if len(judged):
        now = judged.figures(model.ranks(translation, judged.events, bank)) | now
    users = (then["users"], len(np.unique(judged.users)))
    forgotten = len(unremembered(bank, translation))
    verdict, reason = rule.judge(len(window), len(judged), forgotten, before, now, users)
    return DriftReport(
        dataset=title,
        data_version=data_version,
        seeds={},
        split_rule=f"Events from {pd.Timestamp(since, unit='s'):%Y-%m-%d %H:%M:%S} on the data set's clock, each asked "
        f"for just before it happened{f'; of them the last one of every user, {len(like):,}' if last_only else ''}"
        f"{f'; {len(judged):,} of them drawn' if len(judged) < len(like) else ''}.",
        then=f"{then['what']}: {then['events']:,}",
        models=(f"version {champion.number}",),
        links=tuple(links),
        version=champion.number,
        events=len(window),
        users=len(np.unique(window.users)),
        first=int(times[window.events].min()) if len(window) else since,
        last=int(times.max()),
        before=before,
        now=now,
        choice=CHOICE,
        rule=rule,
        verdict=verdict,
        reason=reason,
    )
