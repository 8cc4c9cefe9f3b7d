"""The whole RaSeRec graph on a tiny data set, with real training workers, MLflow and artifact store."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from places import ROOT
from plant import MISCOUNTED, TINY, Plant, built, failed_checks, failures, metadata
from safetensors import safe_open

import assets.data.clean
import assets.raserec.finetuned
from assets.raserec.finetuned import ids_version
from rarec.data.sequences import UserSequences
from rarec.retrieval.memory import MemoryBank
from resources.mlflow.tracked_run import TrackedRun
from resources.workers import launcher
from resources.workers.launcher import TrainingLauncher

ALL = {
    "raw_interactions", "interactions", "item_catalog", "user_profiles", "user_sequences",
    "raserec_pretrained", "memory_bank", "raserec_finetuned", "recommendations", "ranking_baselines",
    "ranking_metrics",
}  # fmt: skip
STAGE_2 = {"raserec_finetuned", "recommendations", "ranking_metrics"}
PRETRAIN, FINETUNE = "rarec.raserec.pretrain", "rarec.raserec.finetune"


@pytest.fixture(scope="module")
def launches():
    """The worker modules that were launched, in order."""
    modules = []
    launch = TrainingLauncher.launch

    def counted(self, context, job, *arguments, **options):
        modules.append(job.module)
        return launch(self, context, job, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLauncher, "launch", counted)
        yield modules


@pytest.fixture(scope="module")
def plant(tmp_path_factory, launches):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(tmp_path_factory.mktemp("plant"), instance, tiny=TINY, miscounted=MISCOUNTED, borrowed=TINY)


@pytest.fixture(scope="module")
def first(plant):
    result = plant.run()
    assert result.success, failures(result)
    return result


@pytest.fixture(scope="module")
def runs(plant, first):
    """Asset -> its MLflow run."""
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    found = {name: client.get_run(Path(str(values["mlflow_run"])).name) for name, values in metadata(first).items()}
    return client, found


def test_first_run_builds_everything_with_one_worker_a_stage(first, launches):
    assert built(first) == ALL
    assert launches[:2] == [PRETRAIN, FINETUNE]


def test_every_check_ran_and_passed(first):
    checks = {(check.asset_key.to_user_string(), check.check_name) for check in first.get_asset_check_evaluations()}
    assert checks == {
        ("incoming_interactions", "files_accepted"),
        *(("interactions", name) for name in ("schema", "unique_key", "time_order", "published_counts")),
        ("item_catalog", "schema"),
        ("user_profiles", "schema"),
        ("user_sequences", "no_leak_between_splits"),
        ("memory_bank", "recall"),
    }
    assert failed_checks(first) == {}


def test_metadata_tells_identity_place_and_mlflow_run(plant, first):
    for name, values in metadata(first).items():
        artifact = plant.artifact(first, name)
        assert (
            Path(values["artifact"]) == artifact.path == Path(plant.home.artifacts, name, "tiny", values["fingerprint"])
        )
        assert values["mlflow_run"].startswith("http://127.0.0.1:5000/#/experiments/1/runs/")


@pytest.mark.parametrize(
    ("asset", "files"),
    [
        ("raw_interactions", {"interactions.parquet", "items.parquet", "quarantine.parquet", "provenance.json"}),
        ("interactions", {"interactions.parquet", "counts.json"}),
        ("item_catalog", {"items.parquet"}),
        ("user_profiles", {"users.parquet"}),
        ("raserec_pretrained", {"history.json"}),
        ("memory_bank", {"bank.json", "index.faiss", "representations.npy"}),
        ("raserec_finetuned", {"history.json"}),
        ("recommendations", {"recommendations.parquet"}),
        ("ranking_baselines", {"ranks.parquet"}),
        ("ranking_metrics", {"report.html", "report.json"}),
    ],
)
def test_artifacts_hold_their_files_and_no_pickle(plant, first, asset, files):
    names = set(plant.artifact(first, asset).manifest.files)
    assert names >= files
    assert {Path(name).suffix for name in names} <= {
        ".parquet", ".json", ".npy", ".safetensors", ".faiss", ".html", ".png", ".svg"
    }  # fmt: skip


def test_training_artifacts_say_how_training_went(plant, first):
    for name in ("raserec_pretrained", "raserec_finetuned"):
        values = metadata(first)[name]
        history = json.loads(plant.artifact(first, name).file("history.json").read_text())["history"]
        assert values["epochs"] == len(history) == 2
        assert values["best_epoch"] in (1, 2)
        assert values["validation NDCG@10"] == history[values["best_epoch"] - 1]["NDCG@10"]
        assert "| epoch |" in values["history"]


def test_sequences_tell_how_many_test_targets_are_tied(plant, first):
    values = metadata(first)["user_sequences"]
    assert (
        values["tied_test_targets"]
        == UserSequences.load(plant.artifact(first, "user_sequences").path).tied_test_targets()
    )
    assert 0 <= values["tied_test_targets"] < 1


def test_ranking_metrics_page_shows_a_plot_and_both_models(plant, first):
    values = metadata(first)["ranking_metrics"]
    assert "data:image/png;base64," in values["plot"]
    assert Path(values["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    baselines = metadata(first)["ranking_baselines"]
    assert {name: values[name] for name in baselines.keys() & values.keys() if name.startswith("test ")} == {
        name: baselines[name] for name in baselines if name.startswith("test ")
    }
    assert baselines["test item-KNN masked HR@10"] > 0
    for model in ("popularity", "item-KNN", "pre-trained", "fine-tuned"):
        assert 0 <= values[f"test {model} unmasked NDCG@10"] <= values[f"test {model} unmasked HR@10"] <= 1
        assert model in values["tables"]


def test_recommendations_are_unseen_ranked_and_titled(plant, first):
    table = pd.read_parquet(plant.artifact(first, "recommendations").file("recommendations.parquet"))
    seen = pd.read_parquet(plant.artifact(first, "interactions").file("interactions.parquet"))
    items = pd.read_parquet(plant.artifact(first, "item_catalog").file("items.parquet")).set_index("item_id")
    assert table["user_id"].nunique() == 60
    assert set(table["chosen_by"]) == {"model"}
    assert metadata(first)["recommendations"]["users_by_popularity"] == 0
    assert len(table.merge(seen, on=["user_id", "item_id"])) == 0
    for _, part in table.groupby("user_id"):
        assert part["rank"].tolist() == list(range(1, 21))
        assert part["score"].is_monotonic_decreasing
        assert part["item_id"].is_unique
    assert table["title"].tolist() == items["title"].loc[table["item_id"]].tolist()


def test_mlflow_runs_link_back_to_dagster(first, runs):
    _, found = runs
    for name, run in found.items():
        tags = run.data.tags
        assert run.info.status == "FINISHED"
        assert tags["dagster.run_id"] == first.run_id
        assert tags["dagster.asset_key"] == name
        assert tags["dagster.partition"] == "tiny"
        assert tags["rarec.fingerprint"] == metadata(first)[name]["fingerprint"]


def test_mlflow_runs_hold_params_metrics_by_epoch_and_inputs(first, runs):
    client, found = runs
    run = found["raserec_pretrained"]
    assert run.data.params["dim"] == "8"
    assert run.data.params["contrastive_weight"] == "0.1"  # also those that nobody set
    history = client.get_metric_history(run.info.run_id, "NDCG_at_10")
    assert [metric.step for metric in history] == [1, 2]
    best = metadata(first)["raserec_pretrained"]["validation NDCG@10"]
    assert run.data.metrics["best_NDCG_at_10"] == pytest.approx(best) == max(metric.value for metric in history)
    assert run.data.metrics["loss"] > 0
    (sequences,) = run.inputs.dataset_inputs
    assert sequences.dataset.name == "user_sequences"


def test_mlflow_holds_the_report(runs):
    client, found = runs
    files = {file.path for file in client.list_artifacts(found["ranking_metrics"].info.run_id)}
    assert files >= {"report.html", "report.json", "plots"}


def test_mlflow_keeps_the_model_beside_its_run(plant, first, runs):
    client, found = runs
    run = found["raserec_finetuned"]
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert metadata(first)["raserec_finetuned"]["mlflow_model"] == model.model_uri
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


def test_changing_stage_2_rebuilds_stage_2_and_what_follows(plant, first, launches):
    before = len(launches)
    result = plant.run(raserec_finetuned={"alpha": 0.9})
    assert result.success, failures(result)
    assert built(result) == STAGE_2
    assert launches[before:] == [FINETUNE]
    assert plant.artifact(result, "raserec_finetuned").manifest.config["alpha"] == 0.9
    assert plant.artifact(first, "raserec_finetuned").manifest.config["alpha"] == 0.6  # the other is still there


def test_second_run_from_the_command_line_reuses_everything_and_prints_the_figures(plant, first, tmp_path):
    """In another process, with another Dagster instance: the store alone tells what is there."""
    environment = {
        **os.environ,
        "RAREC_HOME": str(plant.home.root),
        "RAREC_DATA": str(plant.home.data),
        "DAGSTER_HOME": str(tmp_path),
    }
    process = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "--dataset", "tiny", "--track", "raserec"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert {line.split("] ")[1] for line in lines if line.startswith("[")} == {
        f"{name}: reused, nothing has changed" for name in ALL
    }
    figures = metadata(first)["ranking_metrics"]
    for model in ("pre-trained", "fine-tuned"):
        row = next(line for line in lines if line.startswith(model))  # test split, unmasked
        assert f"{figures[f'test {model} unmasked HR@10']:.4f}" in row
    assert any("0 assets built, 12 reused" in line for line in lines)
    assert f"report: {figures['report']}" in lines


def test_force_builds_again_and_gives_the_same_content(plant, first):
    before = plant.artifact(first, "item_catalog").manifest
    result = plant.run(only=["interactions", "item_catalog", "user_profiles"], item_catalog={"force": True})
    assert built(result) == {"interactions", "item_catalog", "user_profiles"}  # one step
    after = plant.artifact(result, "item_catalog").manifest
    assert after.metadata["mlflow_run"] != before.metadata["mlflow_run"]
    assert (after.fingerprint, after.data_version) == (before.fingerprint, before.data_version)


def test_a_damaged_artifact_is_named_and_built_again(plant, first):
    result = plant.run(only=["recommendations"])
    artifact = plant.artifact(result, "recommendations")
    file = artifact.file("recommendations.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    again = plant.run(only=["recommendations"])
    assert built(again) == {"recommendations"}
    assert file.read_bytes() == content
    warnings = [
        record.user_message for record in plant.instance.all_logs(again.run_id) if "Damaged" in record.user_message
    ]
    assert len(warnings) == 1
    assert f"{file} has {len(content) - 1:,} bytes instead of {len(content):,}" in warnings[0]


def test_a_damaged_input_is_refused_and_the_whole_run_heals_it(plant, first):
    artifact = plant.artifact(first, "user_sequences")
    name = next(name for name in artifact.manifest.files if name.endswith(".npy"))
    file = artifact.file(name)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = plant.run(only=["ranking_metrics"], ranking_metrics={"force": True})
    assert list(failures(refused)) == ["ranking_metrics"]
    assert f"{file} was altered after it was written" in failures(refused)["ranking_metrics"]
    healed = plant.run()
    assert healed.success, failures(healed)
    assert built(healed) == {"user_sequences"}
    assert file.read_bytes() == content


def test_full_disk_leaves_nothing_half_written(plant, first, monkeypatch):
    def to_parquet(self, path, **_):
        Path(path).write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Path(plant.home.artifacts) / "recommendations" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(pd.DataFrame, "to_parquet", to_parquet)
    result = plant.run(only=["recommendations"], recommendations={"top_n": 7})
    message = failures(result)["recommendations"]
    assert "Disk full while writing recommendations.parquet" in message
    assert "Nothing was kept" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert list((Path(plant.home.artifacts) / ".staging").iterdir()) == []


def test_more_memories_than_the_bank_holds_are_refused(plant, first):
    result = plant.run(only=["raserec_finetuned"], raserec_finetuned={"memories": 100_000})
    held = metadata(first)["memory_bank"]["memories"]
    message = failures(result)["raserec_finetuned"]
    assert message == f"memories = 100000 exceeds the {held} memories in the bank; lower it"


def test_a_memory_bank_of_another_encoder_is_refused(plant, first):
    tables, models = ("item_catalog", "user_profiles"), ("user_sequences", "raserec_pretrained", "memory_bank")
    made_from = {"user_sequences": tables, "raserec_finetuned": models}
    for name in (*tables, *models, "raserec_finetuned"):
        inputs = {other: plant.artifact(first, other).data_version for other in made_from.get(name, ())}
        plant.put(name, "borrowed", plant.artifact(first, name).path, {}, inputs)
    result = plant.run("borrowed", only=["recommendations"])
    owner = metadata(first)["raserec_pretrained"]["fingerprint"]
    message = failures(result)["recommendations"]
    assert f"the memory bank was made by encoder {owner} and cannot serve encoder" in message
    assert "materialise `memory_bank` again" in message


def test_an_encoder_of_other_sequences_is_refused(plant, first):
    sequences, encoder = (plant.artifact(first, name) for name in ("user_sequences", "raserec_pretrained"))
    plant.put("user_sequences", "borrowed", sequences.path, {"time": "clock"})
    plant.put("raserec_pretrained", "borrowed", encoder.path, {}, inputs={"user_sequences": "of another day"})
    result = plant.run("borrowed", only=["memory_bank"])
    assert failures(result) == {
        "memory_bank": "the raserec_pretrained of borrowed was made from another user_sequences than the current one; "
        "materialise raserec_pretrained again (job `raserec`: make run DATASET=borrowed TRACK=raserec)"
    }


def test_a_training_outlives_a_failure_behind_it(plant, first, monkeypatch, launches):
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


def test_mlflow_gone_after_the_training_costs_the_model_in_mlflow_only(plant, first, monkeypatch):
    monkeypatch.setattr(TrackedRun, "log_pyfunc", lambda *_, **__: None)
    result = plant.run(only=["raserec_finetuned"], raserec_finetuned={"seed": 8})
    assert result.success
    assert metadata(result)["raserec_finetuned"]["mlflow_model"].startswith("not logged, MLflow was unavailable")


def test_a_killed_worker_is_tried_again_and_goes_on(plant, first, monkeypatch):
    """Kill -9 after the first epoch, as when memory runs out; the history is that of an undisturbed training."""
    settings = {"seed": 10, "epochs": 3}
    undisturbed = plant.artifact(
        plant.run(only=["raserec_pretrained"], raserec_pretrained=settings), "raserec_pretrained"
    )
    killed = []
    forward = launcher._ProgressRelay.forward

    def kill(relay):
        forward(relay)
        if relay._seen and not killed and list(plant.home.work.glob("raserec_pretrained/*/checkpoint/*")):
            killed.extend(p.pid for p in psutil.Process().children(recursive=True) if PRETRAIN in p.cmdline())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(launcher._ProgressRelay, "forward", kill)
    again = {**settings, "force": True}
    result = plant.run(only=["raserec_pretrained"], raserec_pretrained=again)
    assert result.success
    assert len(killed) == 1
    assert [event.step_key for event in result.all_events if event.is_step_up_for_retry] == ["raserec_pretrained"]
    assert plant.artifact(result, "raserec_pretrained").data_version == undisturbed.data_version


def test_time_cut_without_clock_is_refused(plant, first):
    plant.put("user_sequences", "borrowed", plant.artifact(first, "user_sequences").path, {"time": "order"})
    plant.put("raserec_pretrained", "borrowed", plant.artifact(first, "raserec_pretrained").path, {})
    result = plant.run("borrowed", only=["memory_bank"], memory_bank={"time_cut": True})
    assert failures(result) == {
        "memory_bank": "time_cut needs clock timestamps, and borrowed has none; set time_cut = false"
    }


def test_counts_other_than_the_published_ones_stop_what_follows(plant):
    result = plant.run("miscounted")
    assert not result.success
    assert failed_checks(result) == {
        ("interactions", "published_counts"): {
            "users": {"found": 60, "published": 61, "difference": -1},
            "items": {"found": 100, "published": 100, "difference": 0},
        }
    }
    assert set(metadata(result)) == {"raw_interactions", "interactions", "item_catalog", "user_profiles"}


def test_a_table_against_its_schema_stops_what_follows(plant, monkeypatch):
    build_tables = assets.data.clean.build_tables

    def broken(*arguments):
        tables = build_tables(*arguments)
        tables.items.loc[1, "item_index"] = 0
        return tables

    monkeypatch.setattr(assets.data.clean, "build_tables", broken)
    result = plant.run("borrowed", item_catalog={"force": True})
    assert not result.success
    ((check, details),) = failed_checks(result).items()
    assert check == ("item_catalog", "schema")
    assert details["faults"] >= 1
    assert "item_index" in str(details["first"])
    assert "user_sequences" not in metadata(result)


def test_nothing_is_left_behind(plant, first):
    assert not list((plant.home.work).rglob("checkpoint/*"))
    assert np.all([not path.name.startswith(".") for path in Path(plant.home.artifacts, ".staging").iterdir()])


def test_a_run_goes_on_with_its_own_artifacts(plant, first, monkeypatch):
    """Another run that materialises the same asset with other settings meanwhile changes nothing here."""
    build = MemoryBank.build

    def overtaken(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBank, "build", build)
            other = plant.run(only=["raserec_pretrained"], raserec_pretrained={"seed": 8, "epochs": 1})
            assert built(other) == {"raserec_pretrained"}
        return build(*arguments)

    monkeypatch.setattr(MemoryBank, "build", overtaken)
    steps = ["raserec_pretrained", "memory_bank", "raserec_finetuned"]
    result = plant.run(only=steps, raserec_pretrained={"seed": 9, "epochs": 1}, raserec_finetuned={"epochs": 1})
    assert failures(result) == {}
    assert built(result) == set(steps)
    encoder = plant.artifact(result, "raserec_pretrained")
    assert encoder.manifest.config["seed"] == 9
    assert plant.artifact(result, "raserec_finetuned").manifest.inputs["encoder"] == encoder.fingerprint


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
