"""An artifact is built once, whole or not at all; what is damaged is named and built again."""

import errno
import socket
from pathlib import Path

import mlflow
import pandas as pd
from plant import built, failures, metadata

from assets.framework.reuse import markdown_table
from resources.mlflow.tracking import MlflowTracking


def test_mlflow_runs_link_back_to_dagster(plant, first):
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    for name, told in metadata(first).items():
        run = client.get_run(Path(told["mlflow_run"]).name)
        tags = run.data.tags
        assert run.info.status == "FINISHED"
        assert tags["dagster.run_id"] == first.run_id
        assert tags["dagster.asset_key"] == name
        assert tags["dagster.partition"] == "tiny"
        assert tags["rarec.fingerprint"] == told["fingerprint"]


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


def test_a_tracking_server_that_is_away_is_told_before_the_work(plant):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    tracking = MlflowTracking(tracking_uri=uri, ui_url=uri, artifact_root="")
    result = plant.run(resources={"tracking": tracking}, raw_interactions={"force": True})
    assert list(failures(result)) == ["raw_interactions"]
    assert failures(result)["raw_interactions"].startswith(f"MLflow at {uri} cannot be used")


def test_tables_in_metadata_keep_their_cells_apart():
    text = markdown_table(pd.DataFrame({"a": ["x|y", "line\nbreak"], "b": [1, 2]}))
    assert text == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n| line break | 2 |"


def test_nothing_half_written_is_left(plant):
    """After all of the above."""
    assert list(Path(plant.home.artifacts, ".staging").iterdir()) == []
