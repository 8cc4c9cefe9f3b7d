"""Group `operations`: candidates compared with the champion, and the champion that everything in use is made with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.champions.served import MADE_OF, REFITTED, REFRESHED, module_of, served, unseen_since
from assets.data.raw import load_counts, load_table
from assets.framework.checks import artifact_check
from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    lineage,
    markdown_table,
    materialise,
    refuse_bad_input,
    resolve,
    takes,
    upstream,
)
from assets.raserec.recommender import log_recommender
from rarec.champions.promotion import PASSES, Decision, Rule, evidence
from rarec.champions.raserec import ServedRecommender
from rarec.champions.window import Window, newest_window, unknown_shares
from rarec.config import Settings
from rarec.errors import InputError
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import Kind, ModelRegistry, Track, Version
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED, TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

CANDIDATE_VERSION = "2"
EVIDENCE = "evidence.json"
DESPITE = "despite_rollback"  # of the evidence: which rollback was known to the one who forced it


class PromotionRule(Rule):
    """By what rule a candidate passes, on either track."""

    replace_lost: bool = pydantic.Field(
        default=False,
        description="Where the champion's artifacts are lost: let the candidate take its place without a comparison.",
    )


class CandidateSettings(PromotionRule):
    """What is compared with the champion, and by what rule it passes."""

    source: Kind = pydantic.Field(
        default="trained",
        description="The present `raserec_finetuned` (trained), or the champion with the present `refreshed_memory` "
        "(refreshed) and `refreshed_finetuned` (finetuned).",
    )
    least_events: int = pydantic.Field(
        default=100,
        ge=1,
        description="With fewer events since either model's training the last event of every user is taken instead "
        "(the leave-one-out test).",
    )
    least_users: int = pydantic.Field(
        default=30, ge=1, description="The same where these events are of fewer users, who are the unit of comparison."
    )
    most_events: int = pydantic.Field(
        default=20_000, ge=1, description="Most events that the models are asked for, drawn with the seed."
    )


@takes(CandidateSettings)
class CandidateConfig(StageConfig):
    """Run configuration of `raserec_candidate`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"raserec_candidate": CandidateSettings}


@dg.asset(
    deps=["interactions", *MADE_OF, REFRESHED, REFITTED],
    group_name="operations",
    kinds={"mlflow"},
    owners=[OWNER],
    code_version=CANDIDATE_VERSION,
)
@refuse_bad_input
def raserec_candidate(
    context: dg.AssetExecutionContext,
    config: CandidateConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """The model that could be the next champion: registered in MLflow, and compared with the champion of today."""
    dataset = context.partition_key
    settings = resolve(CandidateSettings, config, folders.spec(dataset), "raserec_candidate")
    registry = tracking.registry("raserec", dataset)
    champion = registry.champion()
    interactions = upstream(context, store, "interactions")["interactions"]
    made_of = _made_of(context, store, settings.source, champion, dataset)
    identities = {name: artifact.fingerprint for name, artifact in made_of.items()}
    against, lost = opponent(champion, identities, store, dataset, settings.replace_lost)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        version = registry.register(_logged_model(run, made_of, folder), identities, settings.source)
        proof = _compare(settings, interactions, made_of, against, uncompared(champion, lost))
        return conclude(folder, registry, version, champion, proof, config.force)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=CANDIDATE_VERSION,
        settings={**settings.model_dump(mode="json"), "against": champion.artifacts if champion else {}},
        inputs={"interactions": interactions, **identities},
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["raserec_candidate"],
    group_name="operations",
    kinds={"mlflow"},
    owners=[OWNER],
    code_version=CANDIDATE_VERSION,
)
@refuse_bad_input
def raserec_champion(
    context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MlflowTracking
) -> dg.MaterializeResult:
    """The model in use: MLflow's alias `champion` moves to the candidate that passed its check."""
    return promote_candidate(context, store, tracking, "raserec")


def opponent(
    champion: Version | None, candidate: Mapping[str, str], store: ArtifactStore, dataset: str, replace_lost: bool
) -> tuple[dict[str, Artifact] | None, str]:
    """The champion's artifacts, if there is one and it is another model than the candidate; and if it is lost, why.

    Raises:
        InputError: it is lost, and is not to be replaced for that.
    """
    if champion is None or champion.artifacts == dict(candidate):
        return None, ""
    try:
        return champion.open(store, dataset), ""
    except InputError as error:
        if not replace_lost:
            raise
        return None, str(error)


def uncompared(champion: Version | None, lost: str) -> tuple[Decision, str]:
    """The decision where there was nothing to compare with, and why."""
    if champion is None:
        return "first", "there was no champion before"
    if lost:
        return "first", f"not compared, as the champion before, version {champion.number}, is lost (replace_lost)"
    return "same", "it is the champion"


def promote_candidate(
    context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MlflowTracking, track: Track
) -> dg.MaterializeResult:
    """Move the alias to the track's candidate, if that passed."""
    dataset, name = context.partition_key, f"{track}_candidate"
    candidate = upstream(context, store, name)[name]
    proof = json.loads(candidate.file(EVIDENCE).read_text())
    if proof["decision"] not in PASSES:  # the check stops a job, but not somebody who materialises this asset alone
        raise InputError(f"the candidate for {dataset} is worse than the champion, which stays: {proof['reason']}")
    registry = tracking.registry(track, dataset)
    version = next((one for one in registry.versions() if one.number == proof["version"]), None)
    if version is None:
        raise InputError(
            f"version {proof['version']} of {registry.name} is no longer registered in MLflow; materialise {name} with "
            "force"
        )
    before = registry.champion()
    moved = before is None or before.number != version.number
    if moved and proof["against"] != (before.number if before else 0):
        compared = f"version {proof['against']}" if proof["against"] else "none"
        raise InputError(
            f"the champion of {registry.name} changed after the comparison: it was {compared} and is "
            f"{f'version {before.number}' if before else 'none'} now, which stays; run {name} again"
        )
    if moved and version.rolled_back and proof.get(DESPITE) != version.rolled_back:
        favoured = f" in favour of version {version.rolled_back_to}" if version.rolled_back_to else ""
        raise InputError(
            f"version {version.number} of {registry.name} was rolled back on {version.rolled_back}{favoured}, so the "
            f"champion stays: a new candidate is needed. To use this one all the same, run this again with force for "
            f"{name}, or the job `rollback` for {dataset} with track: {track} and version: {version.number}"
        )
    now = registry.promote(version)
    metadata = {
        "version": now.number,
        "moved": moved,
        "before": f"version {before.number}" if before else "none",
        "reason": proof["reason"],
        "model": f"models:/{now.model}@champion",
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(candidate.fingerprint))


def conclude(
    folder: Path,
    registry: ModelRegistry,
    version: Version,
    champion: Version | None,
    proof: dict[str, Any],
    force: bool,
) -> Outcome:
    """Keep the evidence in the artifact and the version's tags; the decision, and both models' figures side by side."""
    proof |= {"version": version.number, "against": champion.number if champion else 0}
    if force and version.rolled_back:
        proof[DESPITE] = version.rolled_back
    if proof["decision"] != "same" or not version.evidence:  # the champion keeps the figures of its promotion
        registry.record(version, proof)
    (folder / EVIDENCE).write_text(json.dumps(proof, indent=1))
    values = {
        **{name: proof[name] for name in ("decision", "reason", "version")},
        "champion": f"version {champion.number}" if champion else "none yet",
        "model": version.uri,
        **{f"window {name}": value for name, value in proof["window"].items()},
    }
    sides = {name: proof[name] for name in ("champion", "candidate") if name in proof}
    shown = markdown_table(pd.DataFrame(sides).round(4).rename_axis("figure").reset_index())
    metrics = {f"{side}/{name}": value for side, figures in sides.items() for name, value in figures.items()}
    return Outcome(values, {"comparison": shown}, metrics)


def _made_of(
    context: dg.AssetExecutionContext, store: ArtifactStore, source: Kind, champion: Version | None, dataset: str
) -> dict[str, Artifact]:
    """Asset to artifact."""
    if source == "trained":
        return lineage(context, store, "raserec_finetuned", *MADE_OF)
    if champion is None:
        raise InputError(f"{dataset} has no champion whose memory could be refreshed; run the job `promote` first")
    names = (REFRESHED, REFITTED) if source == "finetuned" else (REFRESHED,)
    made = upstream(context, store, *names)
    own = champion.open(store, dataset)
    for name, artifact in made.items():
        if artifact.manifest.inputs["encoder"] != own["raserec_pretrained"].fingerprint:
            raise InputError(f"{name} of {dataset} was made for another champion; materialise it again")
    replaced = {"memory_bank", *(("raserec_finetuned", REFITTED) if source == "finetuned" else ())}
    return {**{name: artifact for name, artifact in own.items() if name not in replaced}, **made}


def _logged_model(run: TrackedRun, made_of: Mapping[str, Artifact], scratch: Path) -> str:
    """URI of the MLflow model: that of the training, or a new one with the refreshed memory."""
    if REFRESHED not in made_of:
        uri: str = made_of["raserec_finetuned"].metadata["values"]["mlflow_model"]
        if uri != MODEL_NOT_LOGGED:
            return uri
    bank = made_of.get(REFRESHED) or made_of["memory_bank"]
    encoder, module = made_of["raserec_pretrained"], module_of(made_of)
    logged = log_recommender(run, encoder, bank.path, module.path, made_of["item_catalog"], scratch)
    if logged is None:
        raise InputError("the model could not be logged, as MLflow went away; materialise raserec_candidate again")
    return logged


def ranks_in(model: ServedRecommender, table: pd.DataFrame, clock: bool, window: Window) -> np.ndarray:
    """(E,) rank of each event of the window by the model with its memory as it is."""
    translation = model.translate(table, clock)
    return model.ranks(translation, window.events, model.carried(translation))


def choose_window(
    table: pd.DataFrame, clock: bool, since: int, settings: CandidateSettings
) -> tuple[Window, dict[str, Any]]:
    """The events that none of the models was trained on, and what they are in words and numbers.

    Args:
        since: the time (seconds) from which on no model was trained.
    """
    window, what, protocol = newest_window(table, since), "all events that came after the training data", "since"
    few = len(window) < settings.least_events or len(np.unique(window.users)) < settings.least_users
    if not clock or few:
        window, what = newest_window(table, None), "the last event of every user (leave-one-out)"
        protocol = "last"
    if len(window) == 0:
        raise InputError("there is no event by which models could be compared: no user has three different items")
    if len(window) > settings.most_events:
        window, what = window.drawn(settings.most_events, settings.seed), f"{settings.most_events:,} of {what}"
    times = table["timestamp"].to_numpy()
    return window, {
        "what": what,
        "protocol": protocol,
        "events": len(window),
        "users": len(np.unique(window.users)),
        "from": int(times[window.events].min()),
        "to": int(times[window.events].max()),
        "newest": int(times.max()),
    }


def figures_of(model: ServedRecommender, table: pd.DataFrame, window: Window, ranks: np.ndarray) -> dict[str, float]:
    """Figures of a model's ranks, and what share of the events it cannot know."""
    return {**window.figures(ranks), **unknown_shares(table, window, model.item_ids, model.user_ids)}


def _compare(
    settings: CandidateSettings,
    interactions: Artifact,
    candidate: Mapping[str, Artifact],
    champion: Mapping[str, Artifact] | None,
    otherwise: tuple[Decision, str],
) -> dict[str, Any]:
    """The evidence; without a champion to compare with decision and reason are ``otherwise``."""
    table, clock = load_table(interactions, "interactions"), load_counts(interactions)["time"] == "clock"
    since = max(unseen_since(made_of) for made_of in (candidate, champion) if made_of is not None)
    window, where = choose_window(table, clock, since, settings)
    model = served(candidate)
    ranks = ranks_in(model, table, clock, window)
    own = figures_of(model, table, window, ranks)
    if champion is None:
        return evidence(*otherwise, where, candidate=own)
    against = served(champion)
    theirs = ranks_in(against, table, clock, window)
    decision, reason = settings.decide(window.compare(theirs, ranks, settings.seed))
    return evidence(decision, reason, where, candidate=own, champion=figures_of(against, table, window, theirs))


CHECKS = [
    artifact_check(
        "not_worse",
        "raserec_candidate",
        "On the same events the candidate's NDCG@10 is not worse than the champion's: paired over users.",
        lambda _spec, artifact: judged(json.loads(artifact.file(EVIDENCE).read_text())),
    )
]


def judged(proof: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether a candidate passes, the reason, and if it does not, what that means."""
    passes = proof["decision"] in PASSES
    told = {name: proof[name] for name in ("decision", "reason", "version", "against")}
    if not passes:
        told["next"] = (
            f"nothing to do: version {proof['against']} serves on; a larger `tolerance` in the candidate's "
            'configuration would let it pass (docs/operations.md, "a check failed")'
        )
    return passes, told
