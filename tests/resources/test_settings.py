from pathlib import Path

import pytest

from rarec.errors import InputError
from resources.settings import RarecHome


def test_defaults_lie_in_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    home = RarecHome.from_environment({"RAREC_HOME": ""})
    root = tmp_path / ".rarec"
    assert home == RarecHome(
        root=root,
        data=root / "data",
        artifacts=str(root / "artifacts"),
        tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db",
        mlflow_ui="http://127.0.0.1:5000",
        dagster_ui="http://127.0.0.1:3000",
    )
    assert not root.exists()  # reading settings creates nothing


def test_environment_is_honoured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = RarecHome.from_environment(
        {
            "RAREC_HOME": "home",
            "RAREC_DATA": "../data",
            "RAREC_ARTIFACTS": "s3://bucket/rarec",
            "MLFLOW_TRACKING_URI": "http://mlflow:5000/",
        }
    )
    assert home.root == tmp_path / "home"
    assert home.data == tmp_path.parent / "data"
    assert home.artifacts == "s3://bucket/rarec"
    assert home.mlflow_ui == "http://mlflow:5000"
    folders = (home.mlflow, home.cache, home.dagster, home.work, home.datasets)
    assert folders == tuple(home.root / name for name in ("mlflow", "cache", "dagster", "work", "datasets"))


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("RAREC_HOME", "/somewhere/rarec")
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example/")
    monkeypatch.setenv("DAGSTER_UI_URL", "https://dagster.example/")
    monkeypatch.setenv("DAGSTER_PORT", "3333")
    home = RarecHome.from_environment()
    assert home.root == Path("/somewhere/rarec")
    assert home.mlflow_ui == "https://mlflow.example"
    assert home.dagster_ui == "https://dagster.example"
    monkeypatch.delenv("DAGSTER_UI_URL")
    assert RarecHome.from_environment().dagster_ui == "http://127.0.0.1:3333"


def test_several_machines_and_heartbeat(monkeypatch):
    variables = {
        "RAREC_HOSTFILE": "/shared/hostfile",
        "RAREC_REMOTE_SHELL": "ssh -p 2222",
        "RAREC_RENDEZVOUS": "trainer-0:29500",
        "RAREC_NODES": "4",
        "RAREC_HEARTBEAT": "0",
        "RAREC_WORKER_ENVIRONMENT": "LD_LIBRARY_PATH, TOKEN",
        "LD_LIBRARY_PATH": "/opt/lib",
        "TOKEN": "secret",
    }
    home = RarecHome.from_environment(variables)
    assert home.hostfile == "/shared/hostfile"
    assert home.remote_shell == "ssh -p 2222"
    assert (home.rendezvous, home.nodes, home.heartbeat_s) == ("trainer-0:29500", 4, 0)
    assert home.worker_environment == ("LD_LIBRARY_PATH", "TOKEN")
    assert "secret" not in repr(home)
    assert RarecHome.from_environment({}).heartbeat_s == 1800
    with pytest.raises(InputError, match=r"RAREC_WORKER_ENVIRONMENT names LD_LIBRARY_PATH, TOKEN, which is not set"):
        RarecHome.from_environment({"RAREC_WORKER_ENVIRONMENT": "LD_LIBRARY_PATH,TOKEN"})
    with pytest.raises(InputError, match="RAREC_NODES is 'two'; set it to a whole number"):
        RarecHome.from_environment({"RAREC_NODES": "two"})


def test_home_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(InputError, match=r"RAREC_HOME is .*/home, which is a file; set it to a folder"):
        RarecHome.from_environment({"RAREC_HOME": str(tmp_path / "home")})
