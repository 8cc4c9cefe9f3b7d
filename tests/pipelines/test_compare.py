"""`make compare`: runs found by id, beginning or name, read from MLflow, written as a page."""

import io
import math

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from PIL import Image

from pipelines import compare
from pipelines.definitions import default_resources
from rarec.errors import InputError
from resources.settings import RarecHome


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return RarecHome.from_environment({"RAREC_HOME": str(tmp_path_factory.mktemp("home"))})


@pytest.fixture(scope="module")
def recorded(home):
    return default_resources(home)["tracking"].runs()


@pytest.fixture(scope="module")
def runs(home, recorded, tmp_path_factory):
    """Ids of three runs, the last two of one name."""
    client = mlflow.MlflowClient(home.tracking_uri)
    picture = tmp_path_factory.mktemp("plots") / "training.png"
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, "PNG")
    picture.write_bytes(buffer.getvalue())
    made = []
    for number, name in enumerate(("first", "twice", "twice")):
        tags = {"mlflow.runName": name, "dagster.asset_key": "raserec_finetuned", "dagster.partition": "demo"}
        run = client.create_run(
            client.get_experiment_by_name("rarec").experiment_id, tags=tags, start_time=1000 + number
        )
        made.append(run.info.run_id)
        client.log_param(made[-1], "alpha", 0.5 + number / 10)
        for step in range(3):
            metrics = [Metric("loss", 1.0 / (step + 1 + number), 1, step), Metric("eta_s", 3.0 - step, 1, step)]
            client.log_batch(made[-1], metrics=metrics)
        best = [Metric(f"best_NDCG_at_{length}", length / 100 + number / 10, 1, 0) for length in (5, 10)]
        client.log_batch(made[-1], metrics=best)
        client.log_batch(made[-1], metrics=[Metric("loss", 0.25, 2, 2)])  # a step done again after a failure
        dataset = Dataset(name="memory_bank", digest="d" * 32, source_type="artifact store", source="{}")
        client.log_inputs(made[-1], [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])
        client.log_artifact(made[-1], str(picture), "plots")
        client.set_terminated(made[-1], end_time=5000 + number)
    return made


def test_runs_are_found_by_id_beginning_and_name(recorded, runs):
    found = recorded.find([runs[0], runs[1][:12], "twice"])
    assert [run.info.run_id for run in found] == [runs[0], runs[1], runs[2]]  # of one name the newest


def test_what_is_not_found_or_not_clear_is_told(recorded, runs, monkeypatch):
    all_listed = "; `make compare` without RUNS lists the newest$"
    with pytest.raises(InputError, match=f"^MLflow knows no run 'nobody'{all_listed}"):
        recorded.find([runs[0], "nobody"])
    for name, near in (("twic", "'twice'"), ("frist", "'first'"), ("i", "'twice', 'first'")):
        with pytest.raises(InputError, match=f"^MLflow knows no run '{name}'; nearest: {near}{all_listed}"):
            recorded.find([name])  # before how many they are
    with pytest.raises(InputError, match=f"^name 2 to 26 runs, .*RUNS='1a2b3c4d 5e6f7a8b'{all_listed}"):
        recorded.find([runs[0]])
    with pytest.raises(InputError, match=f"^the run 'first' is named twice; name runs that differ{all_listed}"):
        recorded.find(["first", runs[1], runs[0]])
    monkeypatch.setattr("resources.mlflow.run_history.LEAST_PREFIX", 0)
    with pytest.raises(InputError, match="3 runs have an id that begins with ; write more of it"):
        recorded.find(["", runs[0]])


def test_the_page_is_written_and_the_tables_printed(home, runs, capsys, monkeypatch):
    monkeypatch.setenv("RAREC_HOME", str(home.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    compare.main([runs[0], runs[1]])
    out = capsys.readouterr().out
    assert f"A = first ({runs[0][:8]}, finished)" in out
    assert "Settings that differ: A, B\n" in out
    assert "alpha    0.5  0.6" in out
    assert "best_NDCG_at_10  0.1  0.2 *   +0.1" in out
    assert "best_NDCG_at_5" not in out  # on the page
    page = home.root / "comparisons" / f"{runs[0][:8]}-{runs[1][:8]}" / "report.html"
    assert f"page:   {page}" in out
    text = page.read_text()
    assert "A: plots/training.png" in text
    assert "B: plots/training.png" in text
    assert "memory_bank" in text
    assert "best_NDCG_at_5" in text
    assert "eta_s" not in text  # nothing is left to wait for
    assert "A from 1.0000 to 0.2500; B from 0.5000 to 0.2500" in text


def test_a_run_in_progress_has_no_duration_yet(home, recorded):
    client = mlflow.MlflowClient(home.tracking_uri)
    experiment = client.get_experiment_by_name("rarec").experiment_id
    run = client.create_run(experiment, tags={"rarec.code_version": "3", "rarec.fingerprint": "f" * 32}, start_time=1)
    read = recorded.read(client.get_run(run.info.run_id))
    assert math.isnan(read.seconds)
    assert (read.code_version, read.fingerprint) == ("3", "f" * 32)


def test_without_runs_the_newest_are_listed(home, runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAREC_HOME", str(home.root))
    monkeypatch.setattr("resources.mlflow.run_history.LISTED", 2)
    compare.main([])
    caption, header, _, *rows = capsys.readouterr().out.splitlines()
    assert caption.startswith(f"The newest runs: make compare RUNS='{runs[1][:8]} {runs[2][:8]}' sets")
    assert header.split("  ")[0] == "id"
    when = "1970-01-01 00:00 UTC  finished  best_NDCG_at_10"
    assert rows == [f"{runs[2][:8]}  twice  demo      {when} 0.3000", f"{runs[1][:8]}  twice  demo      {when} 0.2000"]
    with pytest.raises(SystemExit, match=r"error: name 2 to 26 runs, "):
        compare.main([runs[0]])
    monkeypatch.setenv("RAREC_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow has set to the store of before
    compare.main([])
    assert capsys.readouterr().out == "There are no runs yet; make run makes some\n"
