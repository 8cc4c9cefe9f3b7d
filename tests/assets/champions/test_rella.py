"""The tuned language model in use: promoted, judged on grown data as it is served, kept, taken back."""

import shutil
from types import SimpleNamespace

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
from declarations import SYNTHETIC, TINY, declared
from fake_run import FakeRun
from plant import Plant, failed_checks, failures, metadata
from sklearn.metrics import roc_auc_score

from assets.champions import rella
from assets.champions.rella import ANSWERS
from rarec.champions.promotion import RellaCandidateSettings, Rule
from rarec.data.ctr import CtrSamples
from rarec.data.sources.demo import DemoSettings, generate_demo
from rarec.errors import InputError
from resources.mlflow.registry import CHAMPION
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED
from resources.mlflow.tracking import MlflowTracking

FILES = SYNTHETIC[: SYNTHETIC.index("[sources.demo]")].replace("synthetic", "movielens-dat")
GROWING = declared(
    FILES, mixed_reit_samples={"modes": ["mixed"]}, rella_candidate={"tolerance": 0.5, "test_samples": 60}
)
TRAINED = [
    "raw_interactions", "interactions", "item_catalog", "user_profiles", "ctr_samples", "textual_samples",
    "base_language_model", "semantic_item_vectors", "item_index", "retrieval_enhanced_samples", "mixed_reit_samples",
    "lora_checkpoint",
]  # fmt: skip


@pytest.fixture(scope="module")
def plant(tmp_path_factory, trains_here):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(tmp_path_factory.mktemp("plant"), instance, own=GROWING, other=TINY)


@pytest.fixture(scope="module")
def grow(plant):
    """Publish the first share of what happened."""
    folder = plant.home.data / "own"
    folder.mkdir(parents=True)
    generate_demo(DemoSettings(users=60, items=100, interactions_per_user=25), folder)
    lines = (folder / "ratings.dat").read_text().splitlines()
    lines.sort(key=lambda line: int(line.rsplit("::", 1)[1]))

    def publish(share):
        (folder / "ratings.dat").write_text("\n".join(lines[: int(share * len(lines))]) + "\n")

    return publish


def tuned(plant, **config):
    """The track up to the adapter."""
    result = plant.run("own", track="rella", only=TRAINED, **config)
    assert result.success, failures(result)
    return result


def promote(plant, **config):
    return plant.run("own", track="promote_rella", **config)


def registry(plant):
    return plant.tracking.registry("rella", "own")


def answers(plant, result):
    return pd.read_parquet(plant.artifact(result, "rella_candidate").file(ANSWERS))


@pytest.fixture(scope="module")
def promoted(plant, grow):
    grow(0.8)
    tuned(plant)
    result = promote(plant)
    assert result.success, failures(result)
    return result


def test_the_first_candidate_becomes_champion(plant, promoted):
    told = metadata(promoted)
    assert told["rella_candidate"]["decision"] == "first"
    assert told["rella_champion"]["moved"] is True
    champion = registry(plant).champion()
    assert (champion.model, champion.number, champion.replaced) == ("rarec-own-rella", 1, None)
    assert set(champion.artifacts) == set(rella.ARTIFACTS)
    assert 0 < champion.evidence["candidate"]["AUC"] < 1
    assert champion.evidence["window"]["events"] == 60
    assert (champion.evidence["candidate"]["unknown_items"], champion.evidence["candidate"]["unknown_users"]) == (0, 0)
    again = promote(plant)
    assert again.success, failures(again)
    assert metadata(again)["rella_candidate"]["decision"] == "same"
    assert metadata(again)["rella_champion"]["moved"] is False
    assert len(registry(plant).versions()) == 1


def answer_alone(model, table, row):
    """What the MLflow model says of one row of the interactions, from all that its user did before."""
    own = table[table["user_index"] == table["user_index"][row]]
    history = own.loc[: row - 1]
    request = {
        "user": table["user_id"][row], "history": history["item_id"].tolist(), "ratings": history["rating"].tolist(),
        "target": table["item_id"][row],
    }  # fmt: skip
    return float(model.predict(pd.DataFrame([request]))["probability"].iloc[0])


def test_drift_is_measured_on_what_came_since(plant, promoted, grow, real_workers):
    before = registry(plant).champion()
    still = plant.run("own", track="drift_rella")
    assert metadata(still)["rella_drift_report"]["verdict"] == "none"
    # Though only some of the test samples were drawn for the comparison, none of the others is new.
    assert metadata(still)["rella_drift_report"]["new events"] == 0
    newest = pd.read_parquet(plant.artifact(still, "interactions").file("interactions.parquet"))["timestamp"].max()
    grow(0.9)
    with real_workers():
        result = plant.run("own", track="drift_rella", rella_drift_report={"least_events": 20, "tune_drop": 1.0})
    assert result.success, failures(result)
    told = metadata(result)["rella_drift_report"]
    assert (told["verdict"], told["champion"]) == ("none", 1)
    table = pd.read_parquet(plant.artifact(result, "interactions").file("interactions.parquet"))
    place = table.groupby("user_index").cumcount()
    new = table[(table["timestamp"] > newest) & (place >= 5)]
    assert told["new events"] == len(new) > 20
    mlflow.set_tracking_uri(plant.home.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/rarec-own-rella/1")
    known = set(pd.read_parquet(before.open(plant.store, "own")["item_catalog"].file("items.parquet"))["item_id"])
    knows = table["item_id"].isin(known)
    said = np.array([answer_alone(model, table, row) if knows[row] else np.nan for row in new.index])
    assert told["unknown_items"] == np.isnan(said).mean()
    said[np.isnan(said)] = np.nanmean(said)
    assert told["AUC"] == pytest.approx(roc_auc_score(new["rating"] > 3, said), abs=2e-3)
    assert f"({told['AUC'] - before.evidence['candidate']['AUC']:+.4f})" in told["reason"]
    again = plant.run("own", track="drift_rella", rella_drift_report={"least_events": 20, "tune_shift": 0.0})
    assert metadata(again)["rella_drift_report"]["verdict"] == "tune"
    (request,) = (
        plant.defs.get_repository_def()
        .get_sensor_def("follow_drift")
        .evaluate_tick(
            dg.build_sensor_context(
                instance=plant.instance,
                definitions=plant.defs,
                resources={"tracking": plant.tracking},
            )
        )
        .run_requests
    )
    assert (request.job_name, request.partition_key) == ("tune", "own")
    assert "tune_shift = 0.000" in request.tags["rarec/reason"]


def test_drift_needs_a_champion(plant):
    result = plant.run("other", track="rella", only=TRAINED[:4])
    assert result.success, failures(result)
    drift = plant.run("other", track="drift_rella", only=["rella_drift_report"])
    assert failures(drift)["rella_drift_report"] == "other has no champion yet; run the job `promote_rella` first"


@pytest.fixture(scope="module")
def challenged(plant, promoted, grow):
    """More data; another language model and shorter prompts; the candidate passes within the tolerance."""
    grow(1.0)
    tuned(plant, base_language_model={"seed": 7}, textual_samples={"behaviours": 3})
    result = promote(plant)
    assert result.success, failures(result)
    return result


def test_each_model_is_asked_as_it_is_served(plant, challenged):
    mlflow.set_tracking_uri(plant.home.tracking_uri)
    asked = answers(plant, challenged)
    table = pd.read_parquet(_interactions(plant))
    for side, version in (("champion", 1), ("candidate", 2)):
        model = mlflow.pyfunc.load_model(f"models:/rarec-own-rella/{version}")
        known = asked[asked[side].notna()].head(8)
        rows = []
        for user, item in zip(known["user_id"], known["item_id"], strict=True):
            own = table[table["user_id"] == user]
            (place,) = np.flatnonzero(own["item_id"] == item)
            history = own.iloc[:place]
            rows.append(
                {"user": user, "history": history["item_id"].tolist(), "ratings": history["rating"].tolist(),
                 "target": item}
            )  # fmt: skip
        got = model.predict(pd.DataFrame(rows))["probability"]
        np.testing.assert_allclose(got, known[side], atol=1e-4)
    assert (asked["champion"] - asked["candidate"]).abs().max() > 1e-3


def _interactions(plant):
    version = registry(plant).versions()[-1]
    return version.open(plant.store, "own")["interactions"].file("interactions.parquet")


def test_only_targets_that_neither_was_made_with_are_asked(plant, challenged):
    asked = answers(plant, challenged)
    then = registry(plant).versions()[0].open(plant.store, "own")
    newest = pd.read_parquet(then["interactions"].file("interactions.parquet"))
    samples = CtrSamples.load(then["ctr_samples"].path)
    trained = newest.iloc[samples.position[: samples.rows("test").start]]
    pairs = set(zip(trained["user_id"], trained["item_id"], strict=True))
    assert not pairs & set(zip(asked["user_id"], asked["item_id"], strict=True))
    assert len(asked) == 60


def test_a_candidate_that_is_not_worse_takes_its_place(plant, challenged):
    told = metadata(challenged)["rella_candidate"]
    assert told["decision"] in ("better", "not worse")
    assert told["reason"].startswith("AUC 0.")
    assert "; LogLoss " in told["reason"]
    assert told["window what"] == "test samples that neither model was made with"
    champion = registry(plant).champion()
    assert (champion.number, champion.replaced, champion.evidence["against"]) == (2, 1, 1)
    assert {"champion", "candidate"} <= champion.evidence.keys()
    model = mlflow.MlflowClient(plant.home.tracking_uri).get_model_version_by_alias("rarec-own-rella", CHAMPION)
    assert int(model.version) == 2


def test_a_model_that_mlflow_missed_is_logged_now(plant, challenged):
    lora = plant.store.open("lora_checkpoint", "own", registry(plant).champion().artifacts["lora_checkpoint"])
    made = {**registry(plant).champion().open(plant.store, "own"), "lora_checkpoint": lora}
    lora.metadata["values"]["mlflow_model"] = MODEL_NOT_LOGGED
    run = FakeRun(uris=("models:/m-1", None))
    assert rella.RellaTrack().log_model(SimpleNamespace(run=run), made) == "models:/m-1"
    (model,) = run.models
    assert (model["name"], model["files"]) == ("model", sorted(["adapter", *rella.SERVED]))
    assert model["model_config"]["behaviours"] == 3
    with pytest.raises(InputError, match="MLflow was unavailable; materialise rella_candidate again"):
        rella.RellaTrack().log_model(SimpleNamespace(run=run), made)


def test_mlflow_away_is_told_and_nothing_is_retried(plant, promoted):
    away = MlflowTracking(tracking_uri="http://127.0.0.1:9", ui_url="http://127.0.0.1:9", artifact_root="")
    for only in ("rella_candidate", "rella_champion"):
        result = plant.run("own", track="promote_rella", only=[only], resources={"tracking": away})
        assert "MLflow at http://127.0.0.1:9 cannot be used" in failures(result)[only]


def test_a_version_that_is_no_longer_registered(plant, promoted, monkeypatch):
    monkeypatch.setattr("resources.mlflow.registry.ModelRegistry.versions", lambda _: [])
    result = plant.run("own", track="promote_rella", only=["rella_champion"])
    assert "of rarec-own-rella is no longer registered in MLflow" in failures(result)["rella_champion"]


def test_taken_back(plant, challenged):
    job = plant.defs.resolve_job_def("rollback")
    config = {"ops": {"roll_back": {"config": {"track": "rella"}}}}
    result = job.execute_in_process(instance=plant.instance, partition_key="own", run_config=config)
    assert metadata(result)["rella_champion"]["reason"] == "rolled back"
    assert registry(plant).champion().number == 1
    result = job.execute_in_process(
        instance=plant.instance, partition_key="own", run_config=config, raise_on_error=False
    )
    assert "rarec-own-rella has no version before the champion" in failures(result)["roll_back"]


def test_what_was_rolled_back_is_promoted_again_only_by_force(plant, challenged):
    job = plant.defs.resolve_job_def("rollback")
    config = {"ops": {"roll_back": {"config": {"track": "rella", "version": 1}}}}
    if registry(plant).champion().number == 2:
        assert job.execute_in_process(instance=plant.instance, partition_key="own", run_config=config).success
    refused = promote(plant)
    assert metadata(refused)["rella_candidate"]["reused"] is True
    assert not failed_checks(refused)
    message = failures(refused)["rella_champion"]
    when = registry(plant).versions()[1].rolled_back
    assert message.startswith(f"version 2 of rarec-own-rella was rolled back on {when} in favour of version 1, so the ")
    assert message.endswith("force for rella_candidate, or the job `rollback` for own with track: rella and version: 2")
    assert registry(plant).champion().number == 1
    forced = promote(plant, rella_candidate={"force": True})
    assert forced.success, failures(forced)
    champion = registry(plant).champion()
    assert (champion.number, champion.replaced, champion.rolled_back) == (2, 1, "")
    assert job.execute_in_process(instance=plant.instance, partition_key="own", run_config=config).success
    assert "was rolled back on" in failures(promote(plant))["rella_champion"]  # forced once, not for ever


def test_a_worse_candidate_is_stopped_and_the_champion_stays(plant, challenged, monkeypatch):
    before = registry(plant).champion()
    monkeypatch.setattr(Rule, "decide", lambda *_: ("worse", "planted"))
    result = promote(plant, rella_candidate={"seed": 1})
    assert not result.success
    ((check, details),) = failed_checks(result).items()
    assert check == ("rella_candidate", "not_worse")
    assert details["reason"].startswith("AUC planted; LogLoss")
    assert metadata(result)["rella_candidate"]["reason"] == details["reason"]
    assert "rella_champion" not in metadata(result)
    assert registry(plant).champion() == before
    direct = plant.run("own", track="promote_rella", only=["rella_champion"])
    assert "is worse than the champion, which stays: AUC planted" in failures(direct)["rella_champion"]


def test_a_champion_whose_artifact_is_gone_is_told_with_the_way_back(plant, challenged):
    champion = registry(plant).champion()
    folder = plant.home.root / "artifacts/base_language_model/own" / champion.artifacts["base_language_model"]
    shutil.move(folder, folder.with_name("away"))
    try:
        message = failures(promote(plant))["rella_candidate"]
        assert f"has lost base_language_model/own/{folder.name}" in message
        assert "run the job `rollback` for own with track: rella" in message
    finally:
        shutil.move(folder.with_name("away"), folder)


def test_one_class_allows_no_comparison():
    label = np.array([True, False, True, True])
    samples = CtrSamples(np.array([0, 4]), np.arange(4), label, np.array([0, 1, 2, 4]))
    with pytest.raises(InputError, match="neither model was made with are 2 likes and 0 dislikes"):
        rella.choose_samples(samples, None, None, RellaCandidateSettings())
    label[3] = False
    assert rella.choose_samples(samples, None, None, RellaCandidateSettings()).tolist() == [2, 3]
