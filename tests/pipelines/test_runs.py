"""`make runs`: the newest runs as a table."""

import re
import subprocess
import sys

import mlflow
import pytest
from mlflow.entities import Metric
from places import ROOT, child_environment

from pipelines import runs
from pipelines.definitions import default_resources
from resources.settings import Installation


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Installation.from_environment({"RAREC_HOME": str(tmp_path_factory.mktemp("home"))})


@pytest.fixture(scope="module")
def recorded(home):
    """Ids of three runs, the oldest first."""
    experiment = default_resources(home)["tracking"].check()
    client = mlflow.MlflowClient(home.tracking_uri)
    made = []
    for number, metric in enumerate(("NDCG_at_10", "best_NDCG_at_10", "loss")):
        tags = {"mlflow.runName": f"run {number}", "dagster.partition": "demo"}
        made.append(client.create_run(experiment, tags=tags, start_time=1000 + number).info.run_id)
        client.log_batch(made[-1], metrics=[Metric(metric, number / 10, 1, 0), Metric("test/AUC", 0.75, 1, 0)])
    client.set_terminated(made[0], end_time=5000)
    return made


def run_main(monkeypatch, capsys, variables):
    for name in ("RAREC_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_PORT"):  # MLflow itself sets the second one
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    runs.main()
    return capsys.readouterr().out


def test_the_newest_runs_come_first_each_with_its_main_figure(home, recorded, monkeypatch, capsys):
    out = run_main(monkeypatch, capsys, {"RAREC_HOME": str(home.root)})
    caption, header, _, *rows = out.splitlines()
    assert caption.startswith(
        "Newest runs: to compare some, tick them in MLflow (http://127.0.0.1:5000, started by make"
    )
    assert header.split() == ["id", "name", "data", "set", "started", "status", "main", "figure"]
    when = "1970-01-01 00:00 UTC"
    assert (
        [re.split(r"\s{2,}", row) for row in rows]
        == [
            [recorded[2][:8], "run 2", "demo", when, "running", "test/AUC 0.7500"],
            [recorded[1][:8], "run 1", "demo", when, "running", "best_NDCG_at_10 0.1000"],  # before any AUC
            [recorded[0][:8], "run 0", "demo", when, "finished", "test/AUC 0.7500"],
        ]
    )


def test_no_more_than_the_limit_are_listed(home, recorded, monkeypatch, capsys):
    monkeypatch.setattr("resources.mlflow.run_history.LISTED", 1)
    _, _, _, row = run_main(monkeypatch, capsys, {"RAREC_HOME": str(home.root)}).splitlines()
    assert row.startswith(recorded[2][:8])


def test_without_runs_it_says_how_to_make_some(tmp_path, monkeypatch, capsys):
    out = run_main(monkeypatch, capsys, {"RAREC_HOME": str(tmp_path)})
    assert out == "There are no runs yet. Make some with: make run\n"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLflow at http://127.0.0.1:9 cannot be used: ConnectionError"),
        ({"MLFLOW_PORT": "five"}, "MLFLOW_PORT is"),
    ],
)
def test_errors_end_in_one_line(tmp_path, monkeypatch, capsys, variables, message):
    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, capsys, {"RAREC_HOME": str(tmp_path), **variables})
    assert str(caught.value).startswith(f"error: {message}")
    assert "\n" not in str(caught.value)


def test_make_runs_runs_it():
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "runs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines()[-1].endswith("python -m pipelines.runs")
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make runs         list the newest MLflow runs with their main figures" in listed.splitlines()


def test_a_wrong_environment_ends_with_one_line(tmp_path):
    environment = child_environment() | {"RAREC_HOME": str(tmp_path / "a?b")}
    process = subprocess.run(
        [sys.executable, "-m", "pipelines.runs"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: RAREC_HOME: ")
    assert process.stderr.count("\n") == 1
