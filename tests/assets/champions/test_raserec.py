"""RaSeRec as a track of champions: what it is trained with, what it recommends, and on which events it is compared."""

import mlflow
import pandas as pd
from plant import failures, metadata

from assets.data.clean import load_table
from rarec.champions.promotion import Rule
from resources.mlflow.registry import CHAMPION


def test_the_registered_model_recommends(promoted):
    mlflow.set_tracking_uri(promoted.plant.home.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/rarec-own-raserec@{CHAMPION}")
    lists = model.predict(pd.DataFrame({"history": [["1", "2", "3"]]}), params={"top_n": 4})
    assert len(lists["items"][0]) == 4


def test_recommendations_are_the_champions_once_there_is_one(runs):
    model = {job: metadata(runs("promoted")[job])["recommendations"]["model"] for job in ("raserec", "promote")}
    assert model == {"raserec": "the current raserec_finetuned", "promote": "champion, version 1"}


def test_of_a_newcomer_the_champion_knows_nothing_and_recommends_what_is_popular(promoted):
    """The tables are made anew, the models are not: they recommend as what they were made of."""
    promoted.grow(0.8, extra=[("999", "999", 4.0, 956_700_001)])
    ingested = promoted.run("ingest")
    assert ingested.success, failures(ingested)
    again = promoted.run("promote")
    assert again.success, failures(again)
    told = metadata(again)["recommendations"]
    assert (told["model"], told["users_by_popularity"]) == ("champion, version 1", 1)
    lists = load_table(promoted.plant.artifact(again, "recommendations"), "recommendations")
    assert told["users"] == lists["user_id"].nunique()
    newcomer = lists[lists["user_id"] == 999]
    assert lists["chosen_by"].eq("popularity").tolist() == lists["user_id"].eq(999).tolist()
    assert lists["score"].isna().tolist() == lists["user_id"].eq(999).tolist()
    table = load_table(promoted.plant.artifact(ingested, "interactions"), "interactions")
    counts = table["item_id"].value_counts()
    assert newcomer["rank"].tolist() == list(range(1, 21))
    assert counts[newcomer["item_id"]].tolist() == sorted(counts[counts.index != 999], reverse=True)[:20]


def test_a_model_trained_up_to_a_window_is_compared_within_it(promoted, monkeypatch):
    monkeypatch.setattr(Rule, "decide", lambda *_: ("better", "planted"))
    promoted.grow(1.0)
    result = promoted.run("pretrain", user_sequences={"window_days": 30})
    assert result.success, failures(result)
    told = metadata(result)
    assert told["raserec_candidate"]["window from"] >= told["user_sequences"]["until"]
    assert told["raserec_candidate"]["window what"] == "all events that came after the training data"
    champion = promoted.registry.champion()
    assert (champion.number, champion.kind, champion.replaced) == (2, "trained", 1)
