"""RaSeRec's champion with all that happened since: what its memory takes in, and stage 2 trained on that."""

from pathlib import Path

import mlflow
from plant import failures, metadata


def test_new_events_are_remembered_and_nothing_is_trained(refreshed, runs):
    told = metadata(runs("refreshed")["refresh"])
    assert told["refreshed_memory"]["new memories"] > 0
    assert told["refreshed_memory"]["no longer valid"] > 0  # behind the late event
    assert told["raserec_candidate"]["window what"] == "all events that came after the training data"
    champion = refreshed.registry.champion()
    assert (champion.number, champion.kind, champion.replaced) == (2, "refreshed", 1)
    assert "memory_bank" not in champion.artifacts
    assert told["recommendations"]["model"] == "champion, version 2"
    assert not [name for name in told if name.startswith(("raserec_pre", "raserec_fine"))]


def test_the_model_of_a_refreshed_champion_knows_no_users(refreshed):
    mlflow.set_tracking_uri(refreshed.plant.home.tracking_uri)
    version = refreshed.registry.versions()[1]
    assert version.kind == "refreshed"
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    names = {file.name for file in folder.rglob("*.parquet")} | {file.name for file in folder.rglob("*.npy")}
    bank = {"representations.npy", "users.npy", "prefixes.npy", "targets.npy", "known_at.npy"}  # of numbered users
    assert names == bank | {"items.parquet"}


def test_finetuned_on_the_refreshed_memory(refreshed):
    refreshed.grow(0.95)
    result = refreshed.run(
        "finetune",
        refreshed_memory={"window_days": 30}, raserec_candidate={"source": "finetuned", "tolerance": 1.0},
    )  # fmt: skip
    assert result.success, failures(result)
    told = metadata(result)
    unseen = told["refreshed_memory"]["unseen_since"]
    assert told["refreshed_finetuned"]["unseen_since"] == unseen
    assert told["raserec_candidate"]["window from"] >= unseen
    champion = refreshed.registry.champion()
    assert (champion.number, champion.kind, champion.replaced) == (3, "finetuned", 2)
    artifacts = champion.artifacts
    assert {"refreshed_memory", "refreshed_finetuned", "raserec_pretrained"} <= artifacts.keys()
    assert not {"memory_bank", "raserec_finetuned"} & artifacts.keys()
    after = metadata(refreshed.run("drift"))["drift_report"]
    assert after["verdict"] == "refresh"
    assert "events are not in the champion's memory" in after["reason"]
