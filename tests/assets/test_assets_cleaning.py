"""Cleaning up beside other runs."""

from types import SimpleNamespace

import dagster as dg
import pytest

from assets.cleaning import clean_up
from resources.artifacts import ArtifactStore, fingerprint
from resources.folders import Folders
from resources.registry import Version
from resources.tracking import MlflowTracking


@dg.job
def clean():
    clean_up()


@dg.job
def slow():
    pass


def test_cleaning_up_names_the_runs_that_it_waits_for(tmp_path):
    resources = {
        "store": ArtifactStore(root=str(tmp_path), cache=str(tmp_path)),
        "tracking": MlflowTracking(tracking_uri="http://127.0.0.1:9", ui_url="", artifact_root=""),
        "folders": Folders(data="", datasets="", cache="", work="", ledgers=""),
    }
    config = {"ops": {"clean_up": {"config": {"dry_run": False}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        other, _ = (
            instance.create_run_for_job(slow, status=dg.DagsterRunStatus[status]) for status in ("STARTED", "SUCCESS")
        )
        with pytest.raises(dg.Failure, match=rf"whose process is gone: {other.run_id} \(slow\)$"):
            clean.execute_in_process(instance=instance, resources=resources, run_config=config)


def test_models_of_a_data_set_whose_file_is_absent_keep_what_they_are_made_of(tmp_path, monkeypatch):
    store = ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    made = {}
    for name in ("registered", "forgotten"):
        made[name] = fingerprint("memory_bank", "1", {"name": name}, {})
        with store.write(
            "memory_bank", "shop", made[name], inputs={}, config={"name": name}, code_version="1"
        ) as draft:
            (draft.path / "bank.npy").write_bytes(b"1")
    version = Version("rarec-shop-raserec", 1, {"memory_bank": made["registered"]}, "trained")
    monkeypatch.setattr(
        MlflowTracking, "registry",
        lambda _, track, dataset: SimpleNamespace(versions=lambda: [version] if dataset == "shop" else []),
    )  # fmt: skip
    resources = {
        "store": store,
        "tracking": MlflowTracking(tracking_uri="sqlite://", ui_url="", artifact_root=""),
        "folders": Folders(data="", datasets=str(tmp_path / "none"), cache="", work=str(tmp_path / "work"), ledgers=""),
    }
    config = {"ops": {"clean_up": {"config": {"dry_run": False, "days": 1e-9}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        assert clean.execute_in_process(instance=instance, resources=resources, run_config=config).success
    assert store.find("memory_bank", "shop", made["registered"]) is not None
    assert store.find("memory_bank", "shop", made["forgotten"]) is None
