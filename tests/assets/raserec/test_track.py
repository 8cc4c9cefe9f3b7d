"""The whole RaSeRec graph on a tiny data set: what its first run builds, and that real workers build the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import psutil
import pytest
from places import ROOT
from plant import built, failed_checks, failures, metadata

from resources.workers import launcher

ALL = {
    "raw_interactions", "interactions", "item_catalog", "user_profiles", "user_sequences",
    "raserec_pretrained", "memory_bank", "raserec_finetuned", "recommendations", "ranking_baselines",
    "ranking_metrics", "raserec_controls",
}  # fmt: skip
PRETRAIN, FINETUNE = "rarec.raserec.pretrain", "rarec.raserec.finetune"


def test_first_run_builds_everything_with_one_worker_a_stage(seed):
    assert built(seed.first) == ALL
    assert seed.launched == (PRETRAIN, FINETUNE, FINETUNE)  # stage 2, and its control


def test_every_check_ran_and_passed(first):
    checks = {(check.asset_key.to_user_string(), check.check_name) for check in first.get_asset_check_evaluations()}
    assert checks == {
        ("incoming_interactions", "files_accepted"),
        *(("raw_interactions", name) for name in ("rows_set_aside", "read_as_written")),
        *(("interactions", name) for name in ("schema", "unique_key", "time_order", "ties", "published_counts")),
        ("item_catalog", "schema"),
        ("user_profiles", "schema"),
        ("user_sequences", "no_leak_between_splits"),
        ("memory_bank", "recall"),
    }
    assert failed_checks(first) == {}


def test_metadata_tells_identity_place_and_mlflow_run(seed):
    plant = seed.plant
    for name, values in metadata(seed.first).items():
        path = plant.artifact(seed.first, name).path
        assert Path(values["artifact"]) == path == Path(plant.home.artifacts, name, "tiny", values["fingerprint"])
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
        ("raserec_controls", {"random/history.json", "random/module.safetensors"}),
        ("recommendations", {"recommendations.parquet"}),
        ("ranking_baselines", {"ranks.parquet", "chosen.json"}),
        ("ranking_metrics", {"report.html", "report.json"}),
    ],
)
def test_artifacts_hold_their_files_and_no_pickle(plant, first, asset, files):
    names = set(plant.artifact(first, asset).manifest.files)
    assert names >= files
    assert {Path(name).suffix for name in names} <= {
        ".parquet", ".json", ".npy", ".safetensors", ".faiss", ".html", ".png", ".svg"
    }  # fmt: skip


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
    assert any("0 assets built, 13 reused" in line for line in lines)
    assert f"report: {plant.artifact(first, 'ranking_metrics').file('report.html')}" in lines


def test_real_workers_build_the_same_though_one_is_killed(plant, real_workers, monkeypatch):
    """Kill -9 after the first epoch, as when memory runs out; the weights are those of an undisturbed training."""
    steps = ["raserec_pretrained", "memory_bank", "raserec_finetuned"]
    here = plant.run(only=steps, raserec_pretrained={"epochs": 6})
    assert here.success, failures(here)
    killed = []
    forward = launcher._ProgressRelay.forward

    def kill(relay):
        forward(relay)
        if relay._seen and not killed and list(plant.home.work.glob("raserec_pretrained/*/checkpoint/*")):
            killed.extend(p.pid for p in psutil.Process().children(recursive=True) if PRETRAIN in p.cmdline())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(launcher._ProgressRelay, "forward", kill)
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0.1)
    before = {name: plant.artifact(here, name).data_version for name in steps}
    forced = {"raserec_pretrained": {"epochs": 6, "force": True}, "raserec_finetuned": {"force": True}}
    with real_workers():
        result = plant.run(only=steps, **forced)
    assert result.success, failures(result)
    assert built(result) == {"raserec_pretrained", "raserec_finetuned"}
    assert len(killed) == 1
    assert [event.step_key for event in result.all_events if event.is_step_up_for_retry] == ["raserec_pretrained"]
    assert {name: plant.artifact(result, name).data_version for name in steps} == before
    assert not list(plant.home.work.rglob("checkpoint/*"))
