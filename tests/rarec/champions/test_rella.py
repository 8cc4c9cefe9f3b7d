"""Tuned models asked about targets of another day."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from callers_data import unchanged
from rella_toys import BASE, BEHAVIOURS, CPU, LIMIT, TEMPLATE, save_random_adapter, toy_data

from rarec.champions import rella as served
from rarec.champions.rella import AskJob, ask_served, unseen_targets
from rarec.data.ctr import CtrSamples
from rarec.rella.online import OnlineModel
from rarec.rella.scoring import score
from rarec.training.job import Place

DATA = toy_data()
SOURCE = DATA.source
POSITION = SOURCE.samples.position
TABLE = pd.DataFrame(
    {
        "user_index": np.repeat(np.arange(len(DATA.users)), np.diff(SOURCE.samples.offsets)),
        "item_index": SOURCE.items,
        "item_id": DATA.items["item_id"].to_numpy()[SOURCE.items],
        "rating": DATA.rating,
    }
).assign(user_id=lambda table: DATA.users["user_id"].to_numpy()[table["user_index"]])
MODEL = OnlineModel(
    DATA.model(), DATA.tokenizer, DATA.items, DATA.users, DATA.vectors, TEMPLATE, BEHAVIOURS, LIMIT
)  # fmt: skip


def batch(samples, model=MODEL.model):
    return score(model, DATA.prompts, SOURCE.rows(samples, True), DATA.answers, CPU)[0]


def test_on_its_own_day_it_answers_as_predictions_do():
    samples = np.arange(len(SOURCE.samples))[::3]
    with unchanged(TABLE.to_numpy(object), DATA.vectors, MODEL.model):
        got = ask_served(MODEL, TABLE, POSITION[samples], 500)
    np.testing.assert_allclose(got, batch(samples), atol=2e-6)
    assert np.std(got) > 0.01


def test_on_another_day_unknown_items_are_passed_over_and_an_unknown_target_gets_no_answer():
    """Items and users stand in other rows by then, and some are new."""
    samples = np.arange(len(SOURCE.samples))[1::3]
    new_items = {DATA.items["item_id"][2], DATA.items["item_id"][5]}
    stranger = DATA.users["user_id"][1]
    items = DATA.items[~DATA.items["item_id"].isin(new_items)].iloc[::-1].reset_index(drop=True)
    rows = DATA.items.reset_index().set_index("item_id")["index"].loc[items["item_id"]].to_numpy()
    users = DATA.users[DATA.users["user_id"] != stranger].iloc[::-1].reset_index(drop=True)
    model = replace(MODEL, items=items, users=users, vectors=DATA.vectors[rows])
    targets = POSITION[samples]
    got = ask_served(model, TABLE, targets, 500)
    unknown = TABLE["item_id"].iloc[targets].isin(new_items).to_numpy()
    assert 0 < unknown.sum() < len(targets)
    np.testing.assert_array_equal(np.isnan(got), unknown)
    for answer, target in zip(got[~unknown], targets[~unknown], strict=True):  # as one would ask it alone
        own = TABLE.iloc[SOURCE.samples.offsets[TABLE["user_index"].iloc[target]] : target]
        (alone,) = model.predict(
            [TABLE["user_id"].iloc[target]], [own["item_id"].tolist()], [own["rating"].tolist()],
            [TABLE["item_id"].iloc[target]],
        )  # fmt: skip
        assert answer == pytest.approx(alone, abs=2e-6)
    assert np.nanmax(np.abs(got - batch(samples))) > 1e-4
    nothing = replace(model, items=items.assign(item_id=-1 - items.index))
    assert np.isnan(ask_served(nothing, TABLE, targets, 500)).all()


def test_what_either_model_was_made_with_is_no_test():
    """Then: users a, b; the last of four interactions was the test. Now: rows stand otherwise, and there is more."""
    then = pd.DataFrame({"user_id": list("aabb"), "item_id": [1, 2, 1, 3]})
    before = CtrSamples(np.array([0, 2, 4]), np.array([0, 1, 3]), np.ones(3, bool), np.array([0, 1, 2, 3]))
    now = pd.DataFrame({"user_id": list("bbbcaaa"), "item_id": [1, 3, 9, 1, 1, 2, 3]})
    samples = CtrSamples(
        np.array([0, 3, 4, 7]), np.array([0, 4, 1, 2, 3, 5, 6]), np.ones(7, bool), np.array([0, 1, 2, 7])
    )  # fmt: skip
    # Positions 1 (b, 3): its test; 2 (b, 9), 3 (c, 1), 6 (a, 3): new; 5 (a, 2): it was chosen on that.
    assert unseen_targets(samples, now, before, then).tolist() == [2, 3, 4, 6]
    as_text = then.astype(str)
    assert unseen_targets(samples, now, before, as_text).tolist() == [2, 3, 4, 6]
    assert unseen_targets(before, then, before, then).tolist() == [2]


@pytest.mark.parametrize("world", [1, 3])
def test_workers_share_the_targets(tmp_path, monkeypatch, world):
    folders = DATA.save(tmp_path / "artifacts", DATA.model())
    TABLE.to_parquet(tmp_path / "artifacts/interactions/interactions.parquet")
    adapter = tmp_path / "adapter"
    adapted = save_random_adapter(DATA.model(), adapter, 1)
    samples = np.array([3, 20])  # fewer than workers
    np.save(tmp_path / "targets.npy", POSITION[samples])
    names = ("base_language_model", "item_catalog", "user_profiles", "semantic_item_vectors")
    job = AskJob(
        name="candidate",
        model={"adapter": adapter, **{name: folders[name] for name in names}},
        base=BASE,
        template=TEMPLATE,
        behaviours=BEHAVIOURS,
        cache=tmp_path / "hub",
        interactions=folders["interactions"],
        targets=tmp_path / "targets.npy",
        batch_tokens=500,
    )
    stages = set()
    reporter = SimpleNamespace(report=lambda **values: stages.add(values["stage"]))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        served.work(job, Place(output=tmp_path, checkpoint=tmp_path / "checkpoint"), reporter)
    shares = [pd.read_parquet(tmp_path / f"candidate-{rank}.parquet") for rank in range(world)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    answers = pd.concat(shares).set_index("target")["probability"]
    np.testing.assert_allclose(answers.loc[POSITION[samples]], batch(samples, adapted), atol=2e-6)
    assert stages == {"candidate"}
