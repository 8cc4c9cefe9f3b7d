"""Group `recommender`: recommendations of the model in use."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from assets.champions.raserec import ARTIFACTS, served
from assets.data.clean import has_clock, load_table
from assets.framework.lineage import lineage, upstream
from assets.framework.reuse import Outcome
from assets.framework.shown_tables import ShownTable
from assets.framework.stage import Job, Request, stage
from assets.raserec.finetuned import load_recommender
from rarec.data.schemas import ITEM_ID, USER_ID
from rarec.data.sequences import UserSequences
from rarec.raserec.recommender import Recommender, recommend_users
from rarec.raserec.settings import RecommendSettings
from resources.artifacts.store import Artifact
from resources.mlflow.registry import Version


@dataclass(frozen=True)
class _Model:
    """The champion, if there is one, and the artifacts of the model that makes the lists."""

    champion: Version | None
    artifacts: Mapping[str, Artifact]


def _model(request: Request[RecommendSettings]) -> _Model:
    champion = request.tracking.registry("raserec", request.dataset).champion()
    if champion is None:
        return _Model(None, lineage(request.context, request.store, "raserec_finetuned", *ARTIFACTS))
    artifacts = champion.open(request.store, request.dataset)
    return _Model(champion, {**artifacts, **upstream(request.context, request.store, "interactions")})


COLUMNS = {
    "user_id": USER_ID,
    "rank": "Place in the user's list, from 1.",
    "item_id": ITEM_ID,
    "title": "Title of the item.",
    "score": "The model's score; missing if it does not know the user.",
    "chosen_by": "`model`, or `popularity` for users that the model does not know.",
}
SOURCES = {
    "user_id": [("interactions", "user_id")],
    "item_id": [("item_catalog", "item_id")],
    "title": [("item_catalog", "title")],
}


@stage(
    group="recommender",
    version="4",
    settings=RecommendSettings,
    shown=("top_n", "exclude_seen"),
    after=("interactions", *ARTIFACTS, "raserec_champion"),
    prepare=_model,
    versions=lambda request: request.prepared.artifacts,
    kinds={"parquet"},
    read_weekly=True,
)
def recommendations(job: Job[RecommendSettings]) -> Outcome:
    """The best items for every user: one row a user and rank, with score and title. The champion makes them from all
    interactions; without a champion, the current model makes them from its sequences.

    Users that the model does not know get its most popular items, without score: `chosen_by` is popularity.
    """
    champion, artifacts = job.prepared.champion, job.prepared.artifacts
    sequences, recommender, user_ids = _in_use(artifacts) if champion else _present(artifacts)
    lists = recommend_users(recommender, sequences, job.settings.top_n, job.settings.exclude_seen)
    user, place = np.nonzero(lists.items >= 0)
    items = load_table(artifacts["item_catalog"], "items")
    chosen = lists.items[user, place]
    table = pd.DataFrame(
        {
            "user_id": user_ids.take(user).array,
            "rank": (place + 1).astype(np.int32),
            "item_id": items["item_id"].take(chosen).array,
            "title": items["title"].take(chosen).array,
            "score": lists.scores[user, place],
            "chosen_by": np.where(lists.by_popularity[user], "popularity", "model"),
        }
    )
    table.to_parquet(job.folder / "recommendations.parquet", index=False)
    figures: dict[str, float] = {
        "users": sequences.n_users,
        "users_by_popularity": int(lists.by_popularity.sum()),
        "rows": len(table),
    }
    model = f"champion, version {champion.number}" if champion else "the current raserec_finetuned"
    values = {"model": model, **figures}
    return Outcome(values, metrics=figures, table=ShownTable("recommendations.parquet", COLUMNS, SOURCES))


def _present(artifacts: Mapping[str, Artifact]) -> tuple[UserSequences, Recommender, pd.Series]:
    """Everybody's sequences, the model with its memory, and the users' ids, before the first promotion."""
    sequences, recommender = load_recommender(artifacts)
    for split in ("valid", "test"):
        recommender.remember(sequences, sequences.prefixes(split))
    return sequences, recommender, load_table(artifacts["user_profiles"], "users")["user_id"]


def _in_use(artifacts: Mapping[str, Artifact]) -> tuple[UserSequences, Recommender, pd.Series]:
    """The same for the champion, with the current interactions."""
    model, interactions = served(artifacts), artifacts["interactions"]
    translation = model.translate(load_table(interactions, "interactions"), has_clock(interactions))
    recommender = replace(model.recommender, bank=model.carried(translation))
    return translation.sequences, recommender, translation.user_ids
