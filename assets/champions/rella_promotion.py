"""Group `operations`: the tuned language model that could be the next champion, and the one in use."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.champions.promotion import (
    EVIDENCE,
    PromotionRule,
    conclude,
    judged,
    opponent,
    promote_candidate,
    uncompared,
)
from assets.data.raw import load_table
from assets.framework.checks import artifact_check
from assets.framework.stage import OWNER, Outcome, StageConfig, lineage, materialise, refuse_bad_input, resolve, takes
from assets.framework.training import RETRIES, cancellable, run_worker
from assets.rella.language import log_language_model
from rarec.champions.drift import RELLA_CHOICE, RELLA_ERROR
from rarec.champions.promotion import Decision, compare_answers, evidence, with_unknown
from rarec.champions.rella import unseen_targets
from rarec.config import Settings
from rarec.data.ctr import CtrSamples
from rarec.data.ids import IdLookup
from rarec.data.sequences import IntArray, draw_rows
from rarec.data.templates import Template
from rarec.errors import InputError
from rarec.metrics.ctr import METRICS, FloatArray, UserBootstrap, ctr_metrics
from rarec.rella.training_samples import load_variants
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED, TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

CANDIDATE_VERSION = "2"
ASKED = (
    "base_language_model",
    "item_catalog",
    "user_profiles",
    "semantic_item_vectors",
)  # by prompts, with the adapter
MADE_OF = ("interactions", "ctr_samples", "textual_samples", *ASKED, "lora_checkpoint")
ANSWERS = "answers.parquet"


class RellaCandidateSettings(PromotionRule):
    """On how many samples the models are compared, and by what rule a candidate passes."""

    test_samples: int = pydantic.Field(
        default=10_000, ge=2, description="Most test samples that both models are asked about, drawn with the seed."
    )
    batch_tokens: int = pydantic.Field(
        default=16_384, ge=64, description="Most tokens of a padded batch of prompts, as for `ctr_predictions`."
    )


@takes(RellaCandidateSettings)
class RellaCandidateConfig(StageConfig):
    """Run configuration of `rella_candidate`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"rella_candidate": RellaCandidateSettings}


@dg.asset(
    deps=MADE_OF,
    group_name="operations",
    kinds={"mlflow", "pytorch"},
    owners=[OWNER],
    code_version=CANDIDATE_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def rella_candidate(
    context: dg.AssetExecutionContext,
    config: RellaCandidateConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """The tuned model that could be the next champion: registered in MLflow, and compared with the champion of today.

    Each is asked about the same test samples as it is served: with its own language model, item vectors and prompts.
    """
    dataset = context.partition_key
    settings = resolve(RellaCandidateSettings, config, folders.spec(dataset), "rella_candidate")
    registry = tracking.registry("rella", dataset)
    champion = registry.champion()
    made_of = lineage(context, store, "lora_checkpoint", *MADE_OF)
    identities = {name: artifact.fingerprint for name, artifact in made_of.items()}
    against, lost = opponent(champion, identities, store, dataset, settings.replace_lost)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        samples = CtrSamples.load(made_of["ctr_samples"].path)
        rows = _chosen(samples, made_of, against, settings)
        models = {"candidate": made_of, **({"champion": against} if against is not None else {})}
        answers = {
            name: ask_model(
                context, launcher, folders, run, name, model,
                made_of["interactions"], samples.position[rows], settings.batch_tokens,
            )
            for name, model in models.items()
        }  # fmt: skip
        interactions = load_table(made_of["interactions"], "interactions")
        table, newest = interactions.iloc[samples.position[rows]], int(interactions["timestamp"].max())
        about = {"user_id": table["user_id"].array, "item_id": table["item_id"].array, "label": samples.label[rows]}
        pd.DataFrame({**about, **answers}).to_parquet(folder / ANSWERS, index=False)
        proof = _evidence(
            settings, table, newest, samples.label[rows], answers, made_of, against, uncompared(champion, lost)
        )
        version = registry.register(_logged_model(run, made_of), identities, "trained")
        return conclude(folder, registry, version, champion, proof, config.force)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=CANDIDATE_VERSION,
        settings={**settings.model_dump(mode="json"), "against": champion.artifacts if champion else {}},
        inputs={**identities, "interactions": made_of["interactions"]},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


@dg.asset(
    deps=["rella_candidate"],
    group_name="operations",
    kinds={"mlflow"},
    owners=[OWNER],
    code_version=CANDIDATE_VERSION,
)
@refuse_bad_input
def rella_champion(
    context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MlflowTracking
) -> dg.MaterializeResult:
    """The tuned model in use: MLflow's alias `champion` moves to the candidate that passed its check."""
    return promote_candidate(context, store, tracking, "rella")


def _chosen(
    samples: CtrSamples,
    candidate: Mapping[str, Artifact],
    champion: Mapping[str, Artifact] | None,
    settings: RellaCandidateSettings,
) -> IntArray:
    """Ascending test samples that neither model was made with.

    Raises:
        InputError: there are none, or only likes, or only dislikes.
    """
    split = samples.rows("test")
    rows = np.arange(split.start, split.stop)
    if champion is not None:
        now, then = (load_table(made_of["interactions"], "interactions") for made_of in (candidate, champion))
        rows = unseen_targets(samples, now, CtrSamples.load(champion["ctr_samples"].path), then)
    chosen = draw_rows(rows, settings.test_samples, settings.seed)
    likes = int(samples.label[chosen].sum())
    if likes in (0, len(chosen)):
        raise InputError(
            f"of the test samples that neither model was made with {likes} are likes and {len(chosen) - likes} are "
            "not, but an AUC needs both; compare when there are more data"
        )
    return chosen


def ask_model(
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
    folders: Folders,
    run: TrackedRun,
    name: str,
    model: Mapping[str, Artifact],
    interactions: Artifact,
    targets: IntArray,
    batch_tokens: int,
) -> FloatArray:
    """(B,) what a model answers about targets, rows of the interactions; NaN where it does not know the item.

    Args:
        name: of the model, in progress and files.
    """
    workdir = folders.workdir(context.asset_key.to_user_string(), run.fingerprint)
    output = workdir / "answers"
    output.mkdir(parents=True, exist_ok=True)
    np.save(workdir / "targets.npy", targets)
    job = {
        **_served(model),
        "name": name,
        "cache": str(folders.hub_cache),
        "interactions": str(interactions.path),
        "targets": str(workdir / "targets.npy"),
        "batch_tokens": batch_tokens,
        "output": str(output),
    }
    run_worker(context, launcher, folders, run, "rarec.champions.rella", job)
    return _gathered(output, name, targets)


def figures_of(
    made_of: Mapping[str, Artifact], answers: FloatArray, label: np.ndarray, asked: pd.DataFrame, seed: int
) -> dict[str, float]:
    """Figures of a model's answers, AUC's standard error over users, and shares of targets whose item, or whose user,
    it does not know.

    Args:
        answers: (B,) NaN where an item is unknown.
        asked: (B, ...) rows of the targets.
        seed: of the resampled users.
    """
    probability, users = with_unknown(answers), asked["user_index"].to_numpy()
    own = dict(zip(METRICS, ctr_metrics(probability, label).tolist(), strict=True))
    error = float(np.nanstd(UserBootstrap(label, users, seed).metrics(probability)[:, METRICS.index(RELLA_CHOICE)]))
    rows = IdLookup(load_table(made_of["user_profiles"], "users")["user_id"]).rows(asked["user_id"])
    unknown = {"unknown_items": float(np.isnan(answers).mean()), "unknown_users": float((rows < 0).mean())}
    return {**own, RELLA_ERROR: error, **unknown}


def _served(made_of: Mapping[str, Artifact]) -> dict[str, Any]:
    """What `rarec.champions.rella` reads of a model."""
    text = made_of["textual_samples"].manifest.config
    return {
        "model": {"adapter": str(_adapter(made_of)), **{name: str(made_of[name].path) for name in ASKED}},
        "base": made_of["base_language_model"].fingerprint,
        "template": text["template"],
        "behaviours": text["behaviours"],
    }


def _adapter(made_of: Mapping[str, Artifact]) -> Path:
    """Of several adapters the first one is the model."""
    lora = made_of["lora_checkpoint"].path
    return lora / load_variants(lora)[0].name


def _logged_model(run: TrackedRun, made_of: Mapping[str, Artifact]) -> str:
    """URI of the MLflow model: that of the tuning, or one logged now where MLflow was away then."""
    uri: str = made_of["lora_checkpoint"].metadata["values"]["mlflow_model"]
    if uri != MODEL_NOT_LOGGED:
        return uri
    template = Template(**made_of["textual_samples"].manifest.config["template"])
    logged = log_language_model(run, made_of, _adapter(made_of), template)
    if logged is None:
        raise InputError("the model could not be logged, as MLflow went away; materialise rella_candidate again")
    return logged


def _gathered(folder: Path, name: str, targets: IntArray) -> FloatArray:
    """(B,) what the ranks answered, in the order of the targets; their files are removed."""
    files = list(folder.glob(f"{name}-*.parquet"))
    answered = pd.concat([pd.read_parquet(file) for file in files]).set_index("target")["probability"]
    for file in files:
        file.unlink()
    return answered.loc[pd.Index(targets)].to_numpy()


def _evidence(
    settings: RellaCandidateSettings,
    asked: pd.DataFrame,
    newest: int,
    label: np.ndarray,
    answers: Mapping[str, FloatArray],
    candidate: Mapping[str, Artifact],
    champion: Mapping[str, Artifact] | None,
    otherwise: tuple[Decision, str],
) -> dict[str, Any]:
    """The comparison as JSON.

    Args:
        asked: rows of the targets.
        newest: time of the newest interaction (seconds).
        answers: by ``candidate`` and ``champion``, NaN where an item is unknown.
    """
    times = asked["timestamp"].to_numpy()
    window = {
        "what": "test samples that neither model was made with" if champion is not None else "test samples",
        "events": len(asked),
        "users": asked["user_index"].nunique(),
        "from": int(times.min()),
        "to": int(times.max()),
        "newest": newest,
    }

    sides = {"candidate": figures_of(candidate, answers["candidate"], label, asked, settings.seed)}
    if champion is None:
        decision, reason = otherwise
        return evidence(decision, reason, window, **sides)
    sides["champion"] = figures_of(champion, answers["champion"], label, asked, settings.seed)
    theirs, own = (with_unknown(answers[name]) for name in ("champion", "candidate"))
    compared, loss = compare_answers(theirs, own, label, asked["user_index"].to_numpy(), settings.seed)
    decision, reason = settings.decide(compared)
    beside = f"; LogLoss {loss.value:+.4f} ({loss.low:+.4f} to {loss.high:+.4f})"
    return evidence(decision, f"AUC {reason}{beside}", window, **sides)


CHECKS = [
    artifact_check(
        "not_worse",
        "rella_candidate",
        "On the same samples the candidate's AUC is not worse than the champion's: resampled by user.",
        lambda _spec, artifact: judged(json.loads(artifact.file(EVIDENCE).read_text())),
    )
]
