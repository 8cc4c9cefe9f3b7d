"""Stage 2 and its model in MLflow: it gets what it reads, no user ids, and serves without this repository."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
from fake_run import FakeRun
from plant import built, failures, metadata
from safetensors import safe_open

import assets.raserec.finetuned
from assets.raserec.finetuned import ids_version, log_recommender
from rarec.data.sequences import UserSequences
from rarec.raserec.encoders import build_encoder, save_encoder
from rarec.raserec.recommender import Recommender, recommend_histories
from rarec.raserec.retrieval_module import RetrievalAugmentedModule, save_module
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.retrieval.memory import MemoryBank
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits
from resources.mlflow.tracked_run import TrackedRun

FINETUNE = "rarec.raserec.finetune"
STAGE_2 = {"raserec_finetuned", "raserec_controls", "recommendations", "ranking_metrics"}
IDENTITY = "e" * 32
ITEMS = [f"film-{number}" for number in range(30)]
USERS = [f"somebody-{number}" for number in range(12)]


def test_changing_stage_2_rebuilds_stage_2_and_what_follows(plant, first, launches):
    result = plant.run(raserec_finetuned={"alpha": 0.9})
    assert result.success, failures(result)
    assert built(result) == STAGE_2
    assert launches == [FINETUNE, FINETUNE]  # stage 2, and its control
    assert plant.artifact(result, "raserec_finetuned").manifest.config["alpha"] == 0.9
    assert plant.artifact(first, "raserec_finetuned").manifest.config["alpha"] == 0.6  # the other is still there


def test_a_control_is_no_model_to_serve(plant, first, launches):
    result = plant.run(raserec_finetuned={"attend_to": "random"})
    message = failures(result)["raserec_finetuned"]
    assert "attend_to = random is a control" in message
    assert 'set "raserec_controls": {"controls": ["random"]} instead' in message
    assert launches == []


def test_mlflow_keeps_the_model_beside_its_run(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    told = metadata(first)["raserec_finetuned"]
    run = client.get_run(Path(told["mlflow_run"]).name)
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert told["mlflow_model"] == model.model_uri
    assert (model.experiment_id, model.source_run_id) == (run.info.experiment_id, run.info.run_id)
    assert model.status == "READY"
    assert model.params["alpha"] == "0.6"
    assert model.artifact_location.startswith(plant.home.mlflow.as_uri())


ASK = """
histories = json.loads(sys.stdin.read())
def recommend(histories, **params):
    answer = model.predict(pd.DataFrame({"history": histories}), params=params)
    return {"items": answer["items"].tolist(), "scores": answer["scores"].tolist()}
print(json.dumps({
    "plain": recommend(histories),
    "few": recommend(histories, top_n=3),
    "all": recommend(histories, top_n=100, exclude_seen=False),
}))
"""


def test_logged_model_recommends_without_this_repository(plant, first, tmp_path):
    items = pd.read_parquet(plant.artifact(first, "item_catalog").file("items.parquet"))["item_id"].tolist()
    known = items[3:9]
    histories = [known, [str(item) for item in known], [*known[:4], 999_999, *known[4:], "nobody"], [], [999_999]]
    answer = plant.ask_alone(metadata(first)["raserec_finetuned"]["mlflow_model"], ASK, histories, tmp_path)
    numbers, texts, with_unknown, empty, unknown = answer["plain"]["items"]
    assert len(numbers) == 10
    assert not set(numbers) & set(known)
    assert set(numbers) <= set(items)
    assert texts == numbers == with_unknown
    assert empty == unknown == []
    scores = answer["plain"]["scores"][0]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert [row[:3] for row in answer["plain"]["items"]] == answer["few"]["items"]
    assert set(answer["all"]["items"][0]) == set(items)


def test_more_memories_than_the_bank_holds_are_refused(plant, first):
    result = plant.run(only=["raserec_finetuned"], raserec_finetuned={"memories": 100_000})
    held = metadata(first)["memory_bank"]["memories"]
    message = failures(result)["raserec_finetuned"]
    assert message == f"memories = 100000 exceeds the {held} memories in the bank; lower it"


def test_a_training_outlives_a_failure_behind_it(plant, monkeypatch):
    """What fails behind the training is tried again, the training is not."""
    trained = []
    outcome = assets.raserec.finetuned.training_outcome

    def lost(*arguments):
        if trained:
            return outcome(*arguments)
        (checkpoint,) = plant.home.work.glob("raserec_finetuned/*/checkpoint/state.safetensors")
        with safe_open(checkpoint, framework="np") as file:
            trained.extend(json.loads(file.metadata()["state"])["history"])
        raise ConnectionError("the store went away")

    monkeypatch.setattr(assets.raserec.finetuned, "training_outcome", lost)
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0.1)
    result = plant.run(only=["raserec_finetuned"], raserec_finetuned={"seed": 7, "force": True})
    assert result.success
    assert [event.step_key for event in result.all_events if event.is_step_up_for_retry] == ["raserec_finetuned"]
    artifact = plant.artifact(result, "raserec_finetuned")
    history = json.loads(artifact.file("history.json").read_text())["history"]
    assert history == [{k: v for k, v in record.items() if "seconds" not in k} for record in trained]
    spent = sum(record["train_seconds"] + record["validation_seconds"] for record in trained)
    assert artifact.metadata["values"]["seconds"] >= round(spent, 1)  # the first attempt's time: nothing was repeated
    assert [record["epoch"] for record in trained] == [1, 2]
    assert not list(plant.home.work.glob("raserec_finetuned/*/checkpoint"))


def test_mlflow_gone_after_the_training_costs_the_model_in_mlflow_only(plant, monkeypatch):
    monkeypatch.setattr(TrackedRun, "log_pyfunc", lambda *_, **__: None)
    result = plant.run(only=["raserec_finetuned"], raserec_finetuned={"seed": 8})
    assert result.success
    assert metadata(result)["raserec_finetuned"]["mlflow_model"].startswith("not logged, MLflow was unavailable")


def test_a_corrected_title_trains_nothing_again(plant, first):
    """Stage 2's identity holds the catalogue's ids only."""
    inputs = plant.artifact(first, "raserec_finetuned").manifest.inputs
    assert "item_catalog" not in inputs
    catalog = plant.artifact(first, "item_catalog")
    assert inputs["item_ids"] == ids_version(catalog)
    items = pd.read_parquet(catalog.file("items.parquet"))
    corrected = items.assign(title=items["title"] + "!")

    class Corrected:
        def file(self, name):
            path = plant.home.root / name
            corrected.to_parquet(path)
            return path

    assert ids_version(Corrected()) == inputs["item_ids"]
    corrected = corrected.assign(item_id=items["item_id"] + 1)
    assert ids_version(Corrected()) != inputs["item_ids"]


@pytest.fixture(scope="module")
def made_of(tmp_path_factory):
    """Encoder, module, item table, and both kinds of bank, as the assets write them."""
    root = tmp_path_factory.mktemp("artifacts")
    folders = {name: root / name for name in ("encoder", "module", "items", "memory_bank", "refreshed_memory")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        (folder / "history.json").write_text("[]")  # as trainings leave
    items = np.random.default_rng(0).integers(0, len(ITEMS), 12 * 9)
    sequences = UserSequences(np.arange(0, 12 * 9 + 1, 9), items, np.arange(12 * 9), len(ITEMS))
    encoder = build_encoder(
        len(ITEMS), PretrainSettings(dim=8, inner_dim=8, layers=1, heads=1, max_length=8), DropoutBits()
    ).eval()
    save_encoder(encoder, folders["encoder"])
    settings = FinetuneSettings(memories=3, heads=1, inner_dim=8)
    save_module(RetrievalAugmentedModule(8, settings, DropoutBits()), 8, IDENTITY, folders["module"])
    pd.DataFrame({"item_id": ITEMS, "title": ITEMS}).to_parquet(folders["items"] / "items.parquet")
    prefixes = sequences.prefixes("train")
    vectors = encoder.encode(sequences, prefixes).cpu().numpy()
    bank = MemoryBank.build(sequences, prefixes, vectors, IDENTITY, MemorySettings())
    bank.save(folders["memory_bank"])
    bank.save(folders["refreshed_memory"])
    sequences.save(folders["refreshed_memory"])
    pd.DataFrame({"user_id": USERS}).to_parquet(folders["refreshed_memory"] / "users.parquet")
    return folders


@pytest.mark.parametrize(
    ("kind", "links"), [("memory_bank", True), ("refreshed_memory", True), ("refreshed_memory", False)]
)
def test_the_logged_model_holds_no_user_and_recommends(made_of, tmp_path, monkeypatch, kind, links):
    if not links:  # as on some network disks
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))

    encoder = SimpleNamespace(path=made_of["encoder"], fingerprint=IDENTITY)
    items = SimpleNamespace(path=made_of["items"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    uri = log_recommender(FakeRun(tmp_path), encoder, made_of[kind], made_of["module"], items, scratch)
    assert list(scratch.iterdir()) == []
    artifacts = Path(uri) / "artifacts"
    files = [path for path in artifacts.rglob("*") if not path.is_dir()]
    assert not any(path.is_symlink() for path in files)  # what they lead to may go
    assert sorted(path.relative_to(artifacts).as_posix() for path in files) == [
        "bank/bank.json", "bank/index.faiss", "bank/known_at.npy", "bank/prefixes.npy", "bank/representations.npy",
        "bank/targets.npy", "bank/users.npy",
        "encoder/encoder.json", "encoder/encoder.safetensors",
        "items/items.parquet",
        "module/module.json", "module/module.safetensors",
    ]  # fmt: skip
    assert not [path for path in files if b"somebody" in path.read_bytes()]
    history = [3, 7, 11]
    got = mlflow.pyfunc.load_model(uri).predict(
        pd.DataFrame({"history": [[ITEMS[item] for item in history]]}), params={"top_n": 5}
    )
    model = Recommender.load(made_of["encoder"], made_of[kind], made_of["module"], IDENTITY)
    ((items, scores),) = recommend_histories(model, [history], 5)
    assert got["items"][0] == [ITEMS[item] for item in items]
    np.testing.assert_allclose(got["scores"][0], scores, rtol=1e-5)
