"""The candidate and champion assets of every track: compare the candidate, then move the alias to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pandas as pd

from assets.champions.track import Artifacts, ChampionTrack, Compared
from assets.framework.checks import artifact_check
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.stage import Job, Request, stage
from rarec.champions.promotion import PASSES, Decision, Rule, evidence
from rarec.config import Settings
from rarec.errors import InputError
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import ModelRegistry, Version

VERSION = "2"
EVIDENCE = "evidence.json"
DESPITE = "despite_rollback"  # in the evidence: the rollback that was known when promotion was forced


@dataclass(frozen=True)
class _Contest:
    """The opponent of a candidate.

    Attributes:
        opponent: the champion's artifacts, if it is a different model from the candidate.
        lost: why no comparison was possible, if the champion's artifacts are lost.
    """

    registry: ModelRegistry
    champion: Version | None
    candidate: Artifacts
    interactions: Artifact
    opponent: Artifacts | None
    lost: str

    @property
    def identities(self) -> dict[str, str]:
        return {name: artifact.fingerprint for name, artifact in self.candidate.items()}


def candidate_stage(track: ChampionTrack[Any, Any]) -> dg.AssetsDefinition:
    """The asset `<track>_candidate`."""

    def prepare(request: Request[Rule]) -> _Contest:
        registry = request.tracking.registry(track.name, request.dataset)
        champion = registry.champion()
        candidate = track.candidate(request, champion)
        identities = {name: artifact.fingerprint for name, artifact in candidate.items()}
        replace_lost = request.settings.replace_lost
        opponent, lost = find_opponent(champion, identities, request.store, request.dataset, replace_lost)
        interactions = track.interactions(request, candidate)
        return _Contest(registry, champion, candidate, interactions, opponent, lost)

    def versions(request: Request[Rule]) -> dict[str, Artifact | str]:
        return {**request.prepared.identities, "interactions": request.prepared.interactions}

    def extras(request: Request[Rule]) -> dict[str, Any]:
        champion = request.prepared.champion
        return {"against": champion.artifacts if champion else {}}

    def build(job: Job[Rule]) -> Outcome:
        contest: _Contest = job.prepared
        proof = _evidence(track, job, contest)
        version = contest.registry.register(
            track.log_model(job, contest.candidate), contest.identities, track.kind(job.settings)
        )
        return _conclude(job, contest, version, proof)

    build.__doc__ = (
        f"The {track.name} model that could be the next champion: registered in MLflow, and compared with the champion "
        f"of today on {track.unit}."
    )
    return stage(
        name=f"{track.name}_candidate",
        group="operations",
        track=track.name,
        version=VERSION,
        settings=track.promotion,
        after=track.artifacts,
        kinds=track.kinds,
        trains=track.has_workers,
        precision=False,
        prepare=prepare,
        versions=versions,
        extras=extras,
    )(build)


def champion_stage(track: ChampionTrack[Any, Any]) -> dg.AssetsDefinition:
    """The asset `<track>_champion`."""
    name = f"{track.name}_candidate"

    def promote(request: Request[Settings]) -> dg.MaterializeResult:
        return _promote(request, track.name, request.inputs[name])

    promote.__doc__ = (
        f"The {track.name} model in use: MLflow's alias `champion` moves to the candidate that passed its check."
    )
    return stage(
        name=f"{track.name}_champion",
        group="operations",
        track=track.name,
        version=VERSION,
        inputs=(name,),
        kinds={"mlflow"},
        makes_artifact=False,
    )(promote)


def not_worse_check(track: ChampionTrack[Any, Any]) -> dg.AssetChecksDefinition:
    """The check that stops a job before a worse candidate becomes champion."""
    return artifact_check(
        "not_worse",
        f"{track.name}_candidate",
        f"On the same {track.unit} the candidate's {track.figure} is not worse than the champion's.",
        lambda _spec, artifact: _judged(json.loads(artifact.file(EVIDENCE).read_text())),
    )


def find_opponent(
    champion: Version | None, candidate: Mapping[str, str], store: ArtifactStore, dataset: str, replace_lost: bool
) -> tuple[dict[str, Artifact] | None, str]:
    """The champion's artifacts, unless there is no champion or it is the candidate itself; if they are lost, why.

    Raises:
        InputError: they are lost and ``replace_lost`` is not set.
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
    """The decision when there was no opponent, and the reason."""
    if champion is None:
        return "first", "there was no champion before"
    if lost:
        return "first", f"not compared: the previous champion, version {champion.number}, is lost (replace_lost)"
    return "same", "it is the champion"


def _evidence(track: ChampionTrack[Any, Any], job: Job[Rule], contest: _Contest) -> dict[str, Any]:
    """The comparison as JSON; without an opponent, only the candidate's figures."""
    seed, opponent = job.settings.seed, contest.opponent
    events = track.events(job, contest.candidate, opponent, contest.interactions)
    own = track.answers(job, "candidate", contest.candidate, events)
    sides = {"candidate": track.figures(contest.candidate, own, events, seed)}
    if opponent is None:
        decision, reason = uncompared(contest.champion, contest.lost)
        return evidence(decision, reason, dict(events.window), **sides)
    theirs = track.answers(job, "champion", opponent, events)
    sides["champion"] = track.figures(opponent, theirs, events, seed)
    compared: Compared = track.compare(theirs, own, events, seed)
    decision, reason = job.settings.decide(compared.paired)
    return evidence(decision, f"{compared.before}{reason}{compared.after}", dict(events.window), **sides)


def _conclude(job: Job[Rule], contest: _Contest, version: Version, proof: dict[str, Any]) -> Outcome:
    """Keep the evidence in the artifact and the version's tags; the decision, and both models' figures side by side."""
    champion = contest.champion
    proof |= {"version": version.number, "against": champion.number if champion else 0}
    if job.force and version.rolled_back:
        proof[DESPITE] = version.rolled_back
    if proof["decision"] != "same" or not version.evidence:  # the champion keeps the figures of its promotion
        contest.registry.record(version, proof)
    (job.folder / EVIDENCE).write_text(json.dumps(proof, indent=1))
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


def _promote(request: Request[Settings], track: str, candidate: Artifact) -> dg.MaterializeResult:
    """Move the alias to the candidate if it passed."""
    dataset, name = request.dataset, f"{track}_candidate"
    proof = json.loads(candidate.file(EVIDENCE).read_text())
    if proof["decision"] not in PASSES:  # the check stops a job, but not a run of this asset alone
        raise InputError(f"the candidate for {dataset} is worse than the champion, which stays: {proof['reason']}")
    registry = request.tracking.registry(track, dataset)
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
            f"{f'version {before.number}' if before else 'none'} now. Nothing was changed; run {name} again"
        )
    if moved and version.rolled_back and proof.get(DESPITE) != version.rolled_back:
        favoured = f" in favour of version {version.rolled_back_to}" if version.rolled_back_to else ""
        raise InputError(
            f"version {version.number} of {registry.name} was rolled back on {version.rolled_back}{favoured}, so the "
            f"champion stays: a new candidate is needed. To use this one anyway, run this again with force for "
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


def _judged(proof: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether a candidate passes and why; if it does not, what to do."""
    passes = proof["decision"] in PASSES
    told = {name: proof[name] for name in ("decision", "reason", "version", "against")}
    if not passes:
        told["next"] = (
            f"nothing to do: version {proof['against']} stays in use; a larger `tolerance` in the candidate's "
            'configuration would let it pass (docs/operations/recovery.md, "The check not_worse failed")'
        )
    return passes, told
