"""The model in use: promoted, refreshed, measured, fine-tuned, taken back; on a data set that grows."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from plant import Plant, failed_checks, failures, metadata

from assets.champions.candidate import find_opponent, uncompared
from assets.champions.raserec import choose_window
from assets.data.clean import load_table
from rarec.champions.promotion import CandidateSettings, Rule
from rarec.data.sources.demo import DemoSettings, generate_demo
from rarec.errors import InputError
from rarec.metrics.significance import compare_paired
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import CHAMPION, Version
from resources.retention import wanted_versions

GROWING = """
name = "{name}"
title = "Growing"
domain = "movies"
rating_scale = [1, 5]
label_threshold = 3
short_users = "train-only"

[[sources]]
format = "recbole"

[overrides.raserec_pretrained]
dim = 8
inner_dim = 8
layers = 1
heads = 1
max_length = 8
batch_size = 64
epochs = 3

[overrides.raserec_finetuned]
memories = 5
alpha = 0.6
heads = 1
inner_dim = 8
epochs = 2

[overrides.raserec_candidate]
tolerance = 0.5
least_events = 20
least_users = 1

[overrides.drift_report]
least_events = 20
"""
DAY = 86_400


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    generate_demo(DemoSettings(users=60, items=100, interactions_per_user=25), folder)
    names = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    table = pd.read_csv(folder / "ratings.dat", sep="::", engine="python", names=names)
    return table.sort_values("timestamp:float", kind="stable", ignore_index=True)


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(tmp_path_factory.mktemp("plant"), instance, own=GROWING)


@pytest.fixture(scope="module")
def grow(plant, ratings):
    def publish(share, extra=()):
        folder = plant.home.data / "own"
        folder.mkdir(parents=True, exist_ok=True)
        rows = pd.concat([ratings.iloc[: int(share * len(ratings))], pd.DataFrame(extra, columns=ratings.columns)])
        rows.to_csv(folder / "own.inter", sep="\t", index=False)

    return publish


def run(plant, job, **config):
    return plant.run("own", track=job, **config)


def registry(plant):
    return plant.defs.resources["tracking"].registry("raserec", "own")


@pytest.fixture(scope="module")
def promoted(plant, grow):
    """The first champion, on three quarters of the data."""
    grow(0.75)
    early = run(plant, "drift")
    assert "has no champion yet; run the job `promote` first" in failures(early)["drift_report"]
    result = run(plant, "raserec")
    assert result.success, failures(result)
    assert metadata(result)["recommendations"]["model"] == "the current raserec_finetuned"
    result = run(plant, "promote")
    assert result.success, failures(result)
    return result


def test_the_first_candidate_becomes_champion(plant, promoted):
    told = metadata(promoted)
    assert told["raserec_candidate"]["decision"] == "first"
    assert told["raserec_champion"]["moved"] is True
    assert told["recommendations"]["model"] == "champion, version 1"
    champion = registry(plant).champion()
    assert (champion.number, champion.kind, champion.replaced) == (1, "trained", None)
    assert 0 < champion.evidence["candidate"]["NDCG@10"] < 1
    assert champion.evidence["window"]["what"] == "the last event of every user (leave-one-out)"
    again = run(plant, "promote")
    assert again.success
    assert metadata(again)["raserec_candidate"]["decision"] == "same"
    assert metadata(again)["raserec_champion"]["moved"] is False
    assert [version.evidence["decision"] for version in registry(plant).versions()] == ["first"]


def test_registered_model_recommends(plant, promoted):
    import mlflow

    mlflow.set_tracking_uri(plant.home.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/rarec-own-raserec@{CHAMPION}")
    lists = model.predict(pd.DataFrame({"history": [["1", "2", "3"]]}), params={"top_n": 4})
    assert len(lists["items"][0]) == 4


def test_without_new_events_what_was_kept_from_training_is_asked_for(plant, promoted):
    result = run(plant, "drift")
    assert result.success, failures(result)
    told = metadata(result)["drift_report"]
    lengths = load_table(plant.artifact(result, "interactions"), "interactions")["user_id"].value_counts()
    users = (lengths >= 3).sum()  # shorter ones are trained on whole
    # The items of validation and test, each behind a prefix of its own.
    assert told["verdict"] == "refresh"
    assert told["reason"].startswith(f"{2 * users} events are not in the champion's memory; no event is newer")


def test_new_data_do_not_stop_what_was_trained_before_them(plant, promoted, grow):
    """The tables are made anew, the models are not: they are compared, and recommend, as what they were made of."""
    grow(0.8, extra=[("999", "999", 4.0, 956_700_001)])
    assert run(plant, "ingest").success
    again = run(plant, "promote")
    assert again.success, failures(again)
    assert metadata(again)["raserec_candidate"]["decision"] == "same"
    assert registry(plant).champion().number == 1
    # Of the newcomer the champion knows nothing.
    told = metadata(again)["recommendations"]
    assert (told["model"], told["users_by_popularity"]) == ("champion, version 1", 1)
    lists = load_table(plant.artifact(again, "recommendations"), "recommendations")
    assert told["users"] == lists["user_id"].nunique()
    newcomer = lists[lists["user_id"] == 999]
    assert lists["chosen_by"].eq("popularity").tolist() == lists["user_id"].eq(999).tolist()
    assert lists["score"].isna().tolist() == lists["user_id"].eq(999).tolist()
    counts = load_table(plant.artifact(run(plant, "ingest"), "interactions"), "interactions")["item_id"].value_counts()
    had = counts[newcomer["item_id"]].tolist()
    assert newcomer["rank"].tolist() == list(range(1, 21))
    assert had == sorted(counts[counts.index != 999], reverse=True)[:20]


def test_the_alias_stays_where_the_champion_changed_after_the_comparison(plant, promoted, monkeypatch):
    other = replace(registry(plant).champion(), number=7)
    monkeypatch.setattr("resources.mlflow.registry.ModelRegistry.champion", lambda _: other)
    result = plant.run("own", track="promote", only=["raserec_champion"])
    message = failures(result)["raserec_champion"]
    assert re.search(
        "changed after the comparison: it was .* and is version 7 now. Nothing was changed; run ras", message
    )


def test_a_champion_made_by_hand_is_measured_once_it_was_compared(plant, promoted, monkeypatch):
    bare = replace(registry(plant).champion(), evidence={})
    with monkeypatch.context() as patch:
        patch.setattr("resources.mlflow.registry.ModelRegistry.champion", lambda _: bare)
        result = run(plant, "drift")
        assert "became champion without a comparison" in failures(result)["drift_report"]


@pytest.fixture(scope="module")
def refreshed(plant, promoted, grow):
    """New events, one of them late, and the champion's memory refreshed."""
    grow(0.85, extra=[("1", "2", 4.0, 956_700_001)])
    measured = run(plant, "drift", drift_report={"finetune_drop": 5, "pretrain_drop": 5})
    assert measured.success, failures(measured)
    result = run(plant, "refresh", raserec_candidate={"source": "refreshed", "tolerance": 1.0})
    assert result.success, failures(result)
    return measured, result


def test_new_events_are_measured_and_remembered(plant, refreshed):
    measured, result = refreshed
    drift = metadata(measured)["drift_report"]
    assert drift["verdict"] == "refresh"
    assert drift["new events"] > 20
    assert 0 <= drift["unknown_items"] < 1
    told = metadata(result)
    assert told["refreshed_memory"]["new memories"] > 0
    assert told["refreshed_memory"]["no longer valid"] > 0  # behind the late event
    assert told["raserec_candidate"]["window what"] == "all events that came after the training data"
    champion = registry(plant).champion()
    assert (champion.number, champion.kind, champion.replaced) == (2, "refreshed", 1)
    assert "memory_bank" not in champion.artifacts
    assert told["recommendations"]["model"] == "champion, version 2"
    assert not any(
        name.startswith("raserec_pre") or name.startswith("raserec_fine") for name in told
    )  # nothing trained
    after = metadata(run(plant, "drift"))["drift_report"]
    assert (after["champion"], after["verdict"]) == (2, "none")


def test_the_model_of_a_refreshed_champion_knows_no_users(plant, refreshed):
    import mlflow

    mlflow.set_tracking_uri(plant.home.tracking_uri)
    version = registry(plant).versions()[1]
    assert version.kind == "refreshed"
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    names = {file.name for file in folder.rglob("*.parquet")} | {file.name for file in folder.rglob("*.npy")}
    bank = {"representations.npy", "users.npy", "prefixes.npy", "targets.npy", "known_at.npy"}  # of numbered users
    assert names == bank | {"items.parquet"}


def test_what_was_rolled_back_is_promoted_again_only_by_force(plant, refreshed):
    def roll_back(**config):
        job = plant.defs.resolve_job_def("rollback")
        config = {"ops": {"roll_back": {"config": config}}}
        assert job.execute_in_process(instance=plant.instance, partition_key="own", run_config=config).success

    def refresh(**config):
        result = run(plant, "refresh", raserec_candidate={"source": "refreshed", "tolerance": 1.0, **config})
        assert result.success != bool(failures(result))
        return result

    def assert_refused(result):
        told = metadata(result)
        assert told["raserec_candidate"]["reused"] is True
        assert not {"raserec_champion", "recommendations"} & told.keys()
        assert not failed_checks(result)  # the comparison is as good as it was
        assert (
            f"version 2 of rarec-own-raserec was rolled back on {registry(plant).versions()[1].rolled_back} in favour "
            "of version 1, so the champion stays: a new candidate is needed" in failures(result)["raserec_champion"]
        )
        assert registry(plant).champion().number == 1

    roll_back()
    assert_refused(refresh())
    forced = refresh(force=True)
    assert metadata(forced)["raserec_champion"]["moved"] is True
    champion = registry(plant).champion()
    assert (champion.number, champion.replaced, champion.rolled_back) == (2, 1, "")
    roll_back()
    assert_refused(refresh())  # what was forced once is not forced for ever
    roll_back(version=2)
    assert registry(plant).champion() == champion


def test_finetuned_on_the_refreshed_memory(plant, refreshed, grow):
    grow(0.95)
    result = run(
        plant, "finetune",
        refreshed_memory={"window_days": 30}, raserec_candidate={"source": "finetuned", "tolerance": 1.0},
    )  # fmt: skip
    assert result.success, failures(result)
    told = metadata(result)
    unseen = told["refreshed_memory"]["unseen_since"]
    assert told["refreshed_finetuned"]["unseen_since"] == unseen
    assert told["raserec_candidate"]["window from"] >= unseen
    champion = registry(plant).champion()
    assert (champion.number, champion.kind, champion.replaced) == (3, "finetuned", 2)
    artifacts = champion.artifacts
    assert {"refreshed_memory", "refreshed_finetuned", "raserec_pretrained"} <= artifacts.keys()
    assert not {"memory_bank", "raserec_finetuned"} & artifacts.keys()
    after = metadata(run(plant, "drift"))["drift_report"]
    assert after["verdict"] == "refresh"
    assert "events are not in the champion's memory" in after["reason"]


def test_pretrained_with_a_window_that_no_training_sees(plant, refreshed, grow, monkeypatch):
    grow(1.0)
    before = registry(plant).champion()
    monkeypatch.setattr(Rule, "decide", lambda *_: ("worse", "planted"))
    result = run(plant, "pretrain", user_sequences={"window_days": 30})
    assert not result.success
    told = metadata(result)
    assert told["raserec_candidate"]["window from"] >= told["user_sequences"]["until"]
    ((check, details),) = failed_checks(result).items()
    assert check == ("raserec_candidate", "not_worse")
    assert details["reason"] == told["raserec_candidate"]["reason"] == "planted"
    assert details["next"].startswith(f"nothing to do: version {before.number} stays in use; a larger `tolerance`")
    assert "raserec_champion" not in told
    assert registry(plant).champion() == before
    alone = run(plant, "promote", only=[])  # what was judged stays judged
    assert not alone.success
    direct = plant.run("own", track="promote", only=["raserec_champion"])
    assert "is worse than the champion, which stays: planted" in failures(direct)["raserec_champion"]


def test_taken_back_step_by_step_and_no_further(plant, refreshed):
    job = plant.defs.resolve_job_def("rollback")
    seen = [registry(plant).champion().number]
    while True:
        result = job.execute_in_process(instance=plant.instance, partition_key="own", raise_on_error=False)
        if not result.success:
            break
        seen.append(registry(plant).champion().number)
    assert seen == list(range(seen[0], 0, -1))
    assert "has no version before the champion" in failures(result)["roll_back"]
    config = {"ops": {"roll_back": {"config": {"version": 2}}}}
    assert job.execute_in_process(instance=plant.instance, partition_key="own", run_config=config).success
    assert registry(plant).champion().number == 2
    wrong = {"ops": {"roll_back": {"config": {"track": "rarec"}}}}
    result = job.execute_in_process(
        instance=plant.instance, partition_key="own", run_config=wrong, raise_on_error=False
    )
    assert failures(result)["roll_back"].startswith("track is rarec; it must be")


def test_a_new_candidate_is_promoted_after_a_rollback(plant, refreshed, grow):
    run_config = {"ops": {"roll_back": {"config": {"version": 1}}}}
    job = plant.defs.resolve_job_def("rollback")
    assert job.execute_in_process(instance=plant.instance, partition_key="own", run_config=run_config).success
    grow(0.9)
    result = run(plant, "refresh", raserec_candidate={"source": "refreshed", "tolerance": 1.0})
    assert result.success, failures(result)
    newest = registry(plant).versions()[-1]
    assert newest.replaced == 1
    assert registry(plant).champion() == newest


def test_a_champion_whose_artifact_is_gone_is_told_with_the_way_back(plant, refreshed):
    champion = registry(plant).champion()
    name, identity = next(iter(champion.artifacts.items()))
    folder = plant.home.root / "artifacts" / name / "own" / identity
    shutil.move(folder, folder.with_name("away"))
    try:
        result = plant.run("own", track="promote", only=["recommendations"])
        message = failures(result)["recommendations"]
        assert f"version {champion.number} of rarec-own-raserec has lost {name}/own/{identity}" in message
        assert "run the job `rollback` for own" in message
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")  # damaged is as good as lost
        again = failures(plant.run("own", track="promote", only=["recommendations"]))["recommendations"]
        assert again == message
        shutil.rmtree(folder)
    finally:
        shutil.move(folder.with_name("away"), folder)


def test_no_rollback_to_a_version_whose_artifact_is_gone(plant, refreshed):
    before = registry(plant).versions()
    champion, first = registry(plant).champion(), before[0]
    assert champion.number != first.number
    folder = plant.home.root / "artifacts/memory_bank/own" / first.artifacts["memory_bank"]
    shutil.move(folder, folder.with_name("away"))
    try:
        result = plant.defs.resolve_job_def("rollback").execute_in_process(
            instance=plant.instance, partition_key="own", raise_on_error=False,
            run_config={"ops": {"roll_back": {"config": {"version": 1}}}},
        )  # fmt: skip
    finally:
        shutil.move(folder.with_name("away"), folder)
    lost = f"version 1 of rarec-own-raserec has lost memory_bank/own/{folder.name} from the artifact store"
    assert failures(result)["roll_back"].startswith(lost)
    assert not result.get_asset_materialization_events()
    assert (registry(plant).champion(), registry(plant).versions()) == (champion, before)


def test_a_lost_champion_gives_way_without_a_comparison_if_that_is_asked_for(tmp_path):
    store = ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    lost = Version("rarec-own-raserec", 3, {"memory_bank": "a" * 32}, "trained")
    assert find_opponent(None, {}, store, "own", False) == (None, "")
    assert find_opponent(lost, lost.artifacts, store, "own", False) == (None, "")
    assert uncompared(None, "") == ("first", "there was no champion before")
    assert uncompared(lost, "") == ("same", "it is the champion")
    with pytest.raises(InputError, match=r"version 3 of rarec-own-raserec has lost memory_bank.*set replace_lost"):
        find_opponent(lost, {"memory_bank": "b" * 32}, store, "own", False)
    found, why = find_opponent(lost, {"memory_bank": "b" * 32}, store, "own", True)
    assert found is None
    assert uncompared(lost, why) == (
        "first", "not compared: the previous champion, version 3, is lost (replace_lost)"
    )  # fmt: skip


def test_the_sensor_asks_once_for_what_the_newest_report_asks_for(plant, refreshed):
    sensor = plant.defs.get_repository_def().get_sensor_def("follow_drift")

    def tick(cursor=None):
        resources = {"tracking": plant.defs.resources["tracking"]}
        context = dg.build_sensor_context(plant.instance, cursor, definitions=plant.defs, resources=resources)
        return sensor.evaluate_tick(context)

    skipped = tick().skip_message
    measured = re.fullmatch(r"own: the newest drift_report measured version (\d), which is no longer in use", skipped)
    registry(plant).roll_back(plant.store, int(measured[1]))
    data = tick()
    (request,) = data.run_requests
    assert (request.job_name, request.partition_key) == ("refresh", "own")
    assert re.search("new events to remember|not in the champion's memory", request.tags["rarec/reason"])
    assert tick(data.cursor).run_requests == []


@pytest.mark.parametrize(
    ("candidate", "tolerance", "decision"),
    [
        ([0.5, 0.6, 0.7, 0.9], 0.01, "better"),
        ([0.1, 0.0, 0.1, 0.2], 0.99, "worse"),  # significantly
        ([0.4, 0.5, 0.5, 0.6], 0.0, "not worse"),
        ([0.4, 0.5, 0.1, 0.7], 0.01, "worse"),  # the interval holds 0, but it looks a good deal worse
        ([0.4, 0.5, 0.1, 0.7], 0.5, "not worse"),
    ],
)
def test_rule(candidate, tolerance, decision):
    compared = compare_paired([0.4, 0.5, 0.5, 0.6], candidate, seed=1)
    assert Rule(tolerance=tolerance).decide(compared)[0] == decision


@pytest.mark.parametrize(
    ("since", "changed", "what", "events"),
    [
        (30, {}, "all events that came after the training data", 20),
        (30, {"most_events": 7}, "7 of all events that came after the training data", 7),
        (30, {"least_events": 21}, "the last event of every user (leave-one-out)", 10),
        (30, {"least_users": 11}, "the last event of every user (leave-one-out)", 10),
        (41, {}, "the last event of every user (leave-one-out)", 10),
    ],
)
def test_window_of_a_comparison(since, changed, what, events):
    table = pd.DataFrame(
        {
            "user_index": np.repeat(np.arange(10), 4),
            "item_index": np.arange(40),
            "timestamp": np.tile([10, 20, 30, 40], 10),
        }
    )
    settings = CandidateSettings(**{"least_events": 20, "least_users": 10, **changed})
    window, told = choose_window(table, True, since, settings)
    assert (told["what"], told["events"], len(window)) == (what, events, events)
    assert (told["to"], told["newest"]) == (40, 40)


def test_operations_are_no_part_of_everything(plant):
    keys = {key.to_user_string() for key in plant.defs.resolve_job_def("everything").asset_layer.executable_asset_keys}
    assert not {"drift_report", "raserec_candidate", "raserec_champion", "refreshed_memory"} & keys


def test_clean_up_tells_first_and_spares_what_is_in_use(plant, refreshed, grow):
    grow(0.5)  # the champion's data are no longer those of today
    assert run(plant, "drift").success
    before = {(one.asset, one.fingerprint) for one in plant.store.manifests()}
    job = plant.defs.resolve_job_def("clean")

    def clean(**config):
        return job.execute_in_process(
            instance=plant.instance, run_config={"ops": {"clean_up": {"config": {"days": 1e-9, **config}}}}
        )

    def artifacts_told():
        (output,) = [event for event in clean().all_node_events if event.event_type_value == "STEP_OUTPUT"]
        return re.findall(r"own/\w+ \|.*would go", output.step_output_data.metadata["verdicts"].value)

    assert artifacts_told()
    champion = registry(plant).champion().open(plant.store, "own")
    serves = next(iter(champion.values())).path / "manifest.json"
    text = serves.read_text()
    serves.write_text("{")
    assert not artifacts_told()
    serves.write_text(text)
    assert {(one.asset, one.fingerprint) for one in plant.store.manifests()} == before
    assert clean(dry_run=False).success
    after = {(one.asset, one.fingerprint) for one in plant.store.manifests()}
    assert after < before
    known = {version.number: version for version in registry(plant).versions()}
    wanted = wanted_versions([*known.values()], registry(plant).champion(), 5, days=0)
    assert {max(known), registry(plant).champion().number} <= wanted.keys()
    for number in wanted:
        assert known[number].open(plant.store, "own").keys() == known[number].artifacts.keys()
        assert set(known[number].artifacts.items()) <= after
    assert run(plant, "drift").success  # all that is needed is there
