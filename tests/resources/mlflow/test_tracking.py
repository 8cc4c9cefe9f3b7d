"""Whether runs can be recorded, and how a run links Dagster and MLflow."""

import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import dagster as dg
import mlflow
import pytest
from mlflow_toys import materialize
from places import child_environment

from rarec.errors import InputError
from rarec.training.worker.node import free_port
from resources.mlflow import tracking as tracking_module
from resources.mlflow.tracking import MlflowTracking

FIRST_USE = """
import sys
from resources.mlflow.tracking import MlflowTracking
tracking = MlflowTracking(tracking_uri=sys.argv[1], ui_url="", artifact_root=sys.argv[2])
assert "mlflow" not in sys.modules
print(tracking.check())
"""


def test_first_use_is_quiet_and_two_at_once_share_one_experiment(tmp_path):
    """Two processes use a database that does not exist yet."""
    command = [sys.executable, "-c", FIRST_USE, f"sqlite:///{tmp_path}/db/mlflow.db", str(tmp_path / "artifacts")]
    environment = child_environment()
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe) for _ in range(2)]
    assert [process.communicate(timeout=100) for process in both] == [(b"1\n", b""), (b"1\n", b"")]
    assert (tmp_path / "db" / "mlflow.db").is_file()
    assert not (tmp_path / "mlruns").exists()


def test_an_embedded_store_that_was_moved_is_refused(tmp_path):
    def at(home):
        uri = f"sqlite:///{home}/mlflow/mlflow.db"
        return MlflowTracking(tracking_uri=uri, ui_url="", artifact_root=str(home / "mlflow" / "artifacts"))

    home, moved = tmp_path / "home", tmp_path / "moved"
    assert at(home).check() == at(home).check()
    home.rename(moved)
    with pytest.raises(InputError, match=f"store in {moved}/mlflow was made for file://{home}/mlflow/artifacts"):
        at(moved).check()
    moved.rename(home)
    assert at(home).check()


@pytest.fixture
def embedded(tmp_path):
    """An embedded store of its own, which does not exist yet."""
    uri = f"sqlite:///{tmp_path}/my mlflow/mlflow.db"
    return MlflowTracking(tracking_uri=uri, ui_url="", artifact_root=str(tmp_path / "my mlflow" / "artifacts"))


def test_a_deleted_experiment_can_be_restored_or_replaced_as_the_message_says(embedded):
    first = embedded.check()
    client = mlflow.MlflowClient(embedded.tracking_uri)
    run = client.create_run(first).info.run_id
    for way, left in (("Restore it: ", [run]), ("for a new one: ", [])):
        client.delete_experiment(embedded.check())
        with pytest.raises(
            InputError, match=r"^The MLflow experiment 'rarec', which holds all runs, was deleted\. "
        ) as told:
            embedded.newest_runs()
        command = str(told.value).split(way)[1].split(" ; ")[0]
        assert ".venv/bin/mlflow " in command
        own = str(Path(sys.executable).with_name("mlflow"))
        subprocess.run(command.replace(".venv/bin/mlflow", own), shell=True, check=True, timeout=100)
        assert [one.run_id for one in embedded.newest_runs()] == left


def test_a_disk_that_fills_up_leaves_no_half_made_store(embedded, tmp_path, monkeypatch):
    """MLflow cannot use a store that lacks some of its tables."""

    def fill_up(client, **_):
        raise sqlite3.OperationalError("database or disk is full")

    beside = tmp_path / "my mlflow" / "mlflow.db.0.new"
    beside.parent.mkdir()
    beside.write_bytes(b"left by a process that was killed")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "search_experiments", fill_up)
        with pytest.raises(InputError, match=r"^MLflow at sqlite:.* cannot be used\. Disk full: .* \(RAREC_HOME\)"):
            embedded.check()
    assert [file.name for file in beside.parent.iterdir()] == ["mlflow.db.lock"]
    assert embedded.check() == "1"
    assert {file.name for file in beside.parent.iterdir()} == {"mlflow.db.lock", "mlflow.db"}


def test_a_store_of_another_version_of_mlflow_is_told(embedded, tmp_path):
    embedded.check()
    moved = tmp_path / "mlflow.db"  # MLflow checks a store once in a process
    shutil.copy(tmp_path / "my mlflow" / "mlflow.db", moved)
    with closing(sqlite3.connect(moved)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    other = MlflowTracking(tracking_uri=f"sqlite:///{moved}", ui_url="", artifact_root=str(tmp_path / "artifacts"))
    with pytest.raises(
        InputError, match=r"mlflow\.db was made by another version of MLflow\. .* db upgrade sqlite:///"
    ):
        other.check()


def test_run_links_dagster_and_mlflow_both_ways(tracking, store_folder, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<p>hello</p>")
    recorded, result = materialize(tracking, lambda run: run.log_file(page))
    assert recorded.info.status == "FINISHED"
    tags = recorded.data.tags
    assert tags["dagster.run_id"] == result.run_id
    assert tags["dagster.asset_key"] == "ranking_metrics"
    assert tags["dagster.partition"] == "demo"
    assert tags["rarec.fingerprint"] == "0123456789abcdef"
    assert tags["rarec.code_version"] == "3"
    assert recorded.info.run_name == "ranking_metrics demo 01234567"
    (materialization,) = result.asset_materializations_for_node("ranking_metrics")
    assert materialization.metadata["mlflow"].value == (
        f"http://127.0.0.1:5000/#/experiments/{recorded.info.experiment_id}/runs/{recorded.info.run_id}"
    )
    assert len(list((store_folder / "artifacts").rglob("report.html"))) == 1
    assert mlflow.active_run() is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "FAILED"), (dg.DagsterExecutionInterruptedError(), "KILLED")],
)
def test_run_that_does_not_finish_says_so(tracking, error, status):
    def fail(run):
        run.log_metrics({"loss": 1.0})
        raise error

    recorded, result = materialize(tracking, fail)
    assert not result.success
    assert recorded.info.status == status
    assert recorded.data.metrics == {"loss": 1.0}


def test_runs_side_by_side_do_not_mix(tracking):
    meet = threading.Barrier(2, timeout=20)
    recorded = {}

    def one(name):
        def use(run):
            meet.wait()
            run.log_metrics({name: 1.0})

        recorded[name], _ = materialize(tracking, use, {"name": name})

    threads = [threading.Thread(target=one, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b"):
        assert recorded[name].data.metrics == {name: 1.0}
        assert recorded[name].data.params == {"name": name}


def test_unreachable_server_is_told_at_once(tmp_path):
    port = free_port()
    tracking = MlflowTracking(
        tracking_uri=f"http://127.0.0.1:{port}", ui_url=f"http://127.0.0.1:{port}", artifact_root=str(tmp_path)
    )
    started = time.monotonic()
    with pytest.raises(
        InputError, match=rf"MLflow at http://127\.0\.0\.1:{port} cannot be used: ConnectionError: .*MLFLOW_"
    ):
        tracking.check()
    assert time.monotonic() - started < 10


def test_silent_server_is_told_after_the_time_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_module, "CHECK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="cannot be used: ReadTimeout"):
            MlflowTracking(tracking_uri=url, ui_url=url, artifact_root=str(tmp_path)).check()


def test_database_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    tracking = MlflowTracking(
        tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db", ui_url="http://x", artifact_root=str(tmp_path)
    )
    with pytest.raises(InputError, match=r"cannot be used: (NotADirectory|FileExists)Error"):
        tracking.check()
