"""The champion track of ReLLa: a language model with its adapter predicts whether a user likes an item.

Each model is evaluated as it is served: with its own language model, item vectors and prompts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assets.champions.stages import champion_stages
from assets.champions.track import Artifacts, Compared, Drift, Events
from assets.data.clean import load_table
from assets.framework.champion import Champion
from assets.framework.lineage import lineage
from assets.framework.mlflow_models import logged_model, require_logged
from assets.framework.stage import Job, Request
from assets.rella.language import SERVED, log_language_model
from rarec.champions.drift import RELLA_CHOICE, RELLA_ERROR, RellaDriftSettings
from rarec.champions.promotion import Kind, RellaCandidateSettings, compare_answers, with_unknown
from rarec.champions.rella import AskJob, gather_answers, unseen_targets
from rarec.champions.window import new_events, shift_of_items
from rarec.data.ctr import CtrSamples
from rarec.data.ids import IdLookup
from rarec.data.sequences import draw_rows
from rarec.data.templates import Template
from rarec.errors import InputError
from rarec.metrics.ctr import METRICS, UserBootstrap, ctr_metrics
from rarec.rella.training_samples import load_variants
from rarec.types import Float64Array, IntArray
from resources.artifacts.store import Artifact
from resources.mlflow.registry import Version

ARTIFACTS = ("interactions", "ctr_samples", "textual_samples", *SERVED, "lora_checkpoint")
ANSWERS = "answers.parquet"


class RellaTrack:
    """See `assets.champions.track.ChampionTrack`."""

    name = "rella"
    artifacts: tuple[str, ...] = ARTIFACTS
    kinds = frozenset({"mlflow", "pytorch"})
    has_workers = True
    figure = RELLA_CHOICE
    promotion = RellaCandidateSettings
    drift = RellaDriftSettings
    drift_asset = "rella_drift_report"
    follows: tuple[str, ...] = ()
    unit = "test samples"

    def candidate(self, request: Request[RellaCandidateSettings], champion: Version | None) -> dict[str, Artifact]:
        """The model tuned last."""
        return lineage(request.context, request.store, "lora_checkpoint", *ARTIFACTS)

    def interactions(self, request: Request[RellaCandidateSettings], candidate: Artifacts) -> Artifact:
        """The interactions from which the adapter's samples were drawn."""
        return candidate["interactions"]

    def kind(self, settings: RellaCandidateSettings) -> Kind:
        """Always `trained`: nothing of it can be refreshed."""
        return "trained"

    def events(
        self, job: Job[RellaCandidateSettings], candidate: Artifacts, opponent: Artifacts | None, interactions: Artifact
    ) -> Events:
        """Test samples that neither model was built with, drawn with the seed."""
        samples = CtrSamples.load(candidate["ctr_samples"].path)
        table = load_table(interactions, "interactions")
        chosen = choose_samples(samples, table, opponent, job.settings)
        position = samples.position[chosen]
        asked, times = table.iloc[position], table["timestamp"].to_numpy()
        window = {
            "what": "test samples that neither model was made with" if opponent is not None else "test samples",
            "events": len(position),
            "users": asked["user_index"].nunique(),
            "from": int(times[position].min()),
            "to": int(times[position].max()),
            "newest": int(times.max()),
        }
        return Events(interactions, table, position, samples.label[chosen], window)

    def answers(self, job: Job[Any], name: str, model: Artifacts, events: Events) -> Float64Array:
        """(E,) probability of a like, kept in the artifact; NaN if the model does not know the item."""
        answered = ask_model(job, name, model, events.interactions, events.rows, job.settings.batch_tokens)
        kept = job.folder / ANSWERS
        if kept.is_file():
            table = pd.read_parquet(kept)
        else:
            asked = events.asked
            about = {"user_id": asked["user_id"].array, "item_id": asked["item_id"].array, "label": events.label}
            table = pd.DataFrame(about)
        table.assign(**{name: answered}).to_parquet(kept, index=False)
        return answered

    def figures(self, model: Artifacts, answers: Float64Array, events: Events, seed: int) -> dict[str, float]:
        """AUC, LogLoss, ACC, AUC's standard error over users, and shares of targets whose item, or whose user, the
        model does not know.
        """
        probability, users = with_unknown(answers), events.asked["user_index"].to_numpy()
        own = dict(zip(METRICS, ctr_metrics(probability, events.label).tolist(), strict=True))
        draws = UserBootstrap(events.label, users, seed).metrics(probability)[:, METRICS.index(RELLA_CHOICE)]
        rows = IdLookup(load_table(model["user_profiles"], "users")["user_id"]).rows(events.asked["user_id"])
        unknown = {"unknown_items": float(np.isnan(answers).mean()), "unknown_users": float((rows < 0).mean())}
        return {**own, RELLA_ERROR: float(np.nanstd(draws)), **unknown}

    def compare(self, champion: Float64Array, candidate: Float64Array, events: Events, seed: int) -> Compared:
        """AUC, resampled by user; LogLoss is also reported."""
        theirs, own = with_unknown(champion), with_unknown(candidate)
        users = events.asked["user_index"].to_numpy()
        compared, loss = compare_answers(theirs, own, events.label, users, seed)
        beside = f"; LogLoss {loss.value:+.4f} ({loss.low:+.4f} to {loss.high:+.4f})"
        return Compared(compared, "AUC ", beside)

    def log_model(self, job: Job[RellaCandidateSettings], model: Artifacts) -> str:
        """The model logged by the tuning, or logged now if MLflow was unavailable then."""
        if uri := logged_model(model["lora_checkpoint"]):
            return uri
        template = Template(**model["textual_samples"].manifest.config["template"])
        return require_logged(log_language_model(job.run, model, _adapter(model), template), "rella_candidate")

    def measure(self, job: Job[RellaDriftSettings], champion: Champion, table: pd.DataFrame, since: int) -> Drift:
        """Predictions for new events with enough history."""
        settings, model, before = job.settings, champion.artifacts, champion.version.evidence["candidate"]
        rows = new_events(table, since, model["ctr_samples"].manifest.config["minimum_history"])
        asked = draw_rows(rows, settings.most_events, settings.seed)
        liked = job.spec.is_positive(table["rating"].to_numpy()[asked])
        events = Events(job.inputs["interactions"], table, asked, liked, {})
        now: dict[str, float] = {}
        if 0 < liked.sum() < len(liked):
            name = f"version {champion.version.number}"
            answered = ask_model(job, name, model, events.interactions, asked, settings.batch_tokens)
            now = {**self.figures(model, answered, events, settings.seed), **shift_of_items(table, since)}
        users = (champion.window["users"], events.asked["user_index"].nunique())
        verdict, reason = settings.judge(len(rows), before, now, users)
        how = f"; {len(asked):,} of them are asked for, each just before it happened"
        return Drift(rows, now, how, verdict, reason)


def choose_samples(
    samples: CtrSamples, table: pd.DataFrame, opponent: Artifacts | None, settings: RellaCandidateSettings
) -> IntArray:
    """Test samples that neither model was built with, in ascending order.

    Args:
        table: the clean interactions of the samples.

    Raises:
        InputError: there are none, or all or none of them are likes.
    """
    split = samples.rows("test")
    rows = np.arange(split.start, split.stop)
    if opponent is not None:
        then = load_table(opponent["interactions"], "interactions")
        rows = unseen_targets(samples, table, CtrSamples.load(opponent["ctr_samples"].path), then)
    chosen = draw_rows(rows, settings.test_samples, settings.seed)
    likes = int(samples.label[chosen].sum())
    if likes in (0, len(chosen)):
        raise InputError(
            f"AUC needs likes and dislikes, but the test samples that neither model was made with are {likes} likes "
            f"and {len(chosen) - likes} dislikes; run this again when there are more data"
        )
    return chosen


def ask_model(
    job: Job[Any], name: str, model: Artifacts, interactions: Artifact, targets: IntArray, batch_tokens: int
) -> Float64Array:
    """(B,) a model's predictions for targets, which are rows of the interactions; NaN if it does not know the item.

    Args:
        name: of the model, in progress messages and file names.
    """
    output, file = job.workdir / "answers", job.workdir / "targets.npy"
    output.mkdir(parents=True, exist_ok=True)
    np.save(file, targets)
    text = model["textual_samples"].manifest.config
    work = AskJob(
        name=name,
        model={"adapter": _adapter(model), **{part: model[part].path for part in SERVED}},
        base=model["base_language_model"].fingerprint,
        template=Template(**text["template"]),
        behaviours=text["behaviours"],
        cache=job.workspace.hub_cache,
        interactions=interactions.path,
        targets=file,
        batch_tokens=batch_tokens,
    )
    job.train(work, output)
    return gather_answers(output, name, targets)


def _adapter(model: Artifacts) -> Path:
    """The first of several adapters is the model."""
    lora = model["lora_checkpoint"].path
    return lora / load_variants(lora)[0].name


(rella_candidate, rella_champion, rella_drift_report), not_worse = champion_stages(RellaTrack())
