"""The champion track of RaSeRec: encoder, memory and module predict the next item."""

import numpy as np
import pandas as pd

from assets.champions.stages import champion_stages
from assets.champions.track import Artifacts, Compared, Drift, Events
from assets.data.clean import has_clock, load_table
from assets.framework.champion import Champion
from assets.framework.lineage import lineage, upstream
from assets.framework.mlflow_models import logged_model, require_logged
from assets.framework.stage import Job, Request
from assets.raserec.finetuned import log_recommender
from rarec.champions.drift import DriftSettings
from rarec.champions.promotion import CandidateSettings, Kind
from rarec.champions.raserec import ServedRecommender, unremembered
from rarec.champions.window import CHOICE, Window, choose_window, newest_window, shift_of_items, unknown_shares
from rarec.errors import InputError
from rarec.types import Float64Array
from resources.artifacts.store import Artifact
from resources.mlflow.registry import Version

ARTIFACTS = (
    "raserec_pretrained",
    "memory_bank",
    "raserec_finetuned",
    "item_catalog",
    "user_profiles",
    "user_sequences",
)
"""Artifacts of a trained model. A refreshed one has `REFRESHED`, and maybe `REFINETUNED`, instead of some of them."""
REFRESHED, REFINETUNED = "refreshed_memory", "refreshed_finetuned"


def served(artifacts: Artifacts) -> ServedRecommender:
    """The model that these artifacts hold."""
    bank = artifacts.get(REFRESHED) or artifacts["memory_bank"]
    own = REFRESHED in artifacts  # its memories refer to its own sequences
    return ServedRecommender.load(
        artifacts["raserec_pretrained"].path,
        bank.path,
        module_of(artifacts).path,
        artifacts["item_catalog"].path,
        bank.path if own else artifacts["user_profiles"].path,
        bank.path if own else artifacts["user_sequences"].path,
        artifacts["raserec_pretrained"].fingerprint,
    )


def module_of(artifacts: Artifacts) -> Artifact:
    """The retrieval-augmented module."""
    return artifacts.get(REFINETUNED) or artifacts["raserec_finetuned"]


def unseen_since(artifacts: Artifacts) -> int:
    """The time (seconds) from which no events were used to train this model."""
    if REFINETUNED in artifacts:
        return int(artifacts[REFINETUNED].metadata["values"]["unseen_since"])
    sequences = artifacts["user_sequences"]
    until: int | None = sequences.metadata["values"].get("until")
    return until if until is not None else int(np.load(sequences.file("timestamps.npy")).max()) + 1


class RaserecTrack:
    """See `assets.champions.track.ChampionTrack`."""

    name = "raserec"
    artifacts: tuple[str, ...] = ("interactions", *ARTIFACTS, REFRESHED, REFINETUNED)
    kinds = frozenset({"mlflow"})
    has_workers = False
    figure = CHOICE
    promotion = CandidateSettings
    drift = DriftSettings
    drift_asset = "drift_report"
    follows: tuple[str, ...] = ("recommendations",)
    unit = "events"

    def candidate(self, request: Request[CandidateSettings], champion: Version | None) -> dict[str, Artifact]:
        """The model trained last, or the champion with a refreshed memory and module."""
        dataset, source = request.dataset, request.settings.source
        if source == "trained":
            return lineage(request.context, request.store, "raserec_finetuned", *ARTIFACTS)
        if champion is None:
            raise InputError(f"{dataset} has no champion whose memory could be refreshed; run the job `promote` first")
        names = (REFRESHED, REFINETUNED) if source == "finetuned" else (REFRESHED,)
        made = upstream(request.context, request.store, *names)
        own = champion.open(request.store, dataset)
        for name, artifact in made.items():
            if artifact.manifest.inputs["encoder"] != own["raserec_pretrained"].fingerprint:
                raise InputError(f"{name} of {dataset} was made for another champion; materialise it again")
        replaced = {"memory_bank", *(("raserec_finetuned", REFINETUNED) if source == "finetuned" else ())}
        return {**{name: artifact for name, artifact in own.items() if name not in replaced}, **made}

    def interactions(self, request: Request[CandidateSettings], candidate: Artifacts) -> Artifact:
        """The current interactions, which may include more than the models were trained on."""
        return upstream(request.context, request.store, "interactions")["interactions"]

    def kind(self, settings: CandidateSettings) -> Kind:
        """The `source` of the settings."""
        return settings.source

    def events(
        self, job: Job[CandidateSettings], candidate: Artifacts, opponent: Artifacts | None, interactions: Artifact
    ) -> Events:
        """The events after both trainings or, if there are too few, the leave-one-out test."""
        table = load_table(interactions, "interactions")
        since = max(unseen_since(model) for model in (candidate, opponent) if model is not None)
        window, about = choose_window(table, has_clock(interactions), since, job.settings)
        return Events(interactions, table, window.events, np.zeros(len(window), dtype=bool), about)

    def answers(self, job: Job[CandidateSettings], name: str, model: Artifacts, events: Events) -> Float64Array:
        """(E,) rank of each event's item, by the model with its present memory."""
        recommender = served(model)
        translation = recommender.translate(events.table, has_clock(events.interactions))
        return recommender.ranks(translation, events.rows, recommender.carried(translation))

    def figures(self, model: Artifacts, answers: Float64Array, events: Events, seed: int) -> dict[str, float]:
        """HR and NDCG, and the share of events with items or users unknown to the model."""
        window, users = _window(events), model.get(REFRESHED) or model["user_profiles"]
        item_ids = load_table(model["item_catalog"], "items")["item_id"]
        unknown = unknown_shares(events.table, window, item_ids, load_table(users, "users")["user_id"])
        return {**window.figures(answers), **unknown}

    def compare(self, champion: Float64Array, candidate: Float64Array, events: Events, seed: int) -> Compared:
        """NDCG@10, paired by user."""
        return Compared(_window(events).compare(champion, candidate, seed))

    def log_model(self, job: Job[CandidateSettings], model: Artifacts) -> str:
        """The model logged by the training, or a new one with the refreshed memory."""
        if REFRESHED not in model and (uri := logged_model(model["raserec_finetuned"])):
            return uri
        bank = model.get(REFRESHED) or model["memory_bank"]
        encoder, module = model["raserec_pretrained"], module_of(model)
        uri = log_recommender(job.run, encoder, bank.path, module.path, model["item_catalog"], job.folder)
        return require_logged(uri, "raserec_candidate")

    def measure(self, job: Job[DriftSettings], champion: Champion, table: pd.DataFrame, since: int) -> Drift:
        """Ranks of the new events under the protocol of the promotion, and what the memory lacks."""
        rule, then, before = job.settings, champion.window, champion.version.evidence["candidate"]
        model = served(champion.artifacts)
        translation = model.translate(table, clock=True)
        bank = model.carried(translation)
        # Figures are compared under the protocol of the promotion.
        last_only = then.get("protocol") == "last"
        window = newest_window(table, since)
        like = newest_window(table, since, last_only=True) if last_only else window
        judged = like.drawn(rule.most_events, rule.seed)
        now: dict[str, float] = {}
        if len(window):
            now = unknown_shares(table, window, model.item_ids, model.user_ids) | shift_of_items(table, since)
        if len(judged):
            now = judged.figures(model.ranks(translation, judged.events, bank)) | now
        users = (then["users"], len(np.unique(judged.users)))
        forgotten = len(unremembered(bank, translation))
        verdict, reason = rule.judge(len(window), len(judged), forgotten, before, now, users)
        how = (
            f", each asked for just before it happened"
            f"{f'; of them the last one of every user, {len(like):,}' if last_only else ''}"
            f"{f'; {len(judged):,} of them drawn' if len(judged) < len(like) else ''}"
        )
        return Drift(window.events, now, how, verdict, reason)


def _window(events: Events) -> Window:
    return Window(events.rows, events.table["user_index"].to_numpy(np.int64)[events.rows])


(raserec_candidate, raserec_champion, drift_report), not_worse = champion_stages(RaserecTrack())
