import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines import ui
from pipelines.jobs import CASCADE
from pipelines.run import _prepare, main, prepare_dagster_home
from resources.home import RarecHome

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("RAREC_DATA", "RAREC_NPROC", "RAREC_THREADS", "RAREC_ARTIFACTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_dagster_home_is_made_once_and_not_for_one_who_has_it(tmp_path, monkeypatch):
    home = RarecHome.from_environment()
    prepare_dagster_home(home)
    assert not home.dagster.exists()
    assert os.environ["DAGSTER_HOME"] == str(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    assert os.environ["DAGSTER_HOME"] == str(home.dagster)
    settings = home.dagster / "dagster.yaml"
    assert yaml.safe_load(settings.read_text())["nux"] == {"enabled": False}
    settings.write_text("telemetry: {enabled: false}\n")
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    assert settings.read_text() == "telemetry: {enabled: false}\n"


@pytest.mark.parametrize("track", CASCADE)
def test_a_job_keeps_its_own_configuration_beside_what_is_given(track, tmp_path):
    """Else `make run TRACK=refresh` would compare the model trained last, not the refreshed one."""
    home = RarecHome.from_environment({"RAREC_HOME": str(tmp_path)})
    job, config = _prepare("demo", track, '{"incoming_interactions": {}}' if track == "ingest" else "{}", home)
    assert job.name == track
    for asset, settings in CASCADE[track][2].items():
        assert config["ops"][asset]["config"] == settings
    if track == "finetune":
        _, config = _prepare("demo", track, '{"raserec_candidate": {"tolerance": 0.5}}', home)
        assert config["ops"]["raserec_candidate"]["config"] == {"source": "finetuned", "tolerance": 0.5}
        assert CASCADE[track][2]["raserec_candidate"] == {"source": "finetuned"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"track": "rasrec"},
            "error: unknown TRACK 'rasrec' (did you mean 'raserec'?); known: drift, drift_rella, everything, finetune,",
        ),
        ({"dataset": "ml-100"}, "error: Unknown data set 'ml-100' (did you mean 'ml-100k'?); known: amazon-beauty,"),
        ({"config": "{alpha: 1}"}, "error: CONFIG is not JSON: Expecting property name"),
        ({"config": "[]"}, "error: CONFIG must hold settings by asset, not []. Example: CONFIG="),
        ({"config": '{"raserec_finetuned": 3}'}, "error: CONFIG must hold settings by asset, not {"),
        (
            {"config": '{"finetuned": {}}'},
            "error: CONFIG: TRACK=everything has no asset 'finetuned' (did you mean 'raserec_finetuned'?)",
        ),
        (
            {"config": '{"raserec_finetuned": {"alpha": 2}}'},
            "error: CONFIG: raserec_finetuned: alpha is 2; it must be at most 1",
        ),
        (
            {"config": '{"raserec_finetuned": {"dim": 2}}'},
            "error: CONFIG: raserec_finetuned: dim: no such setting; known: learning_rate, epochs, patience, schedule,",
        ),
        (
            {"config": '{"item_catalog": {"k": 2}}'},
            "error: CONFIG: item_catalog: k: no such setting; known: force",
        ),
        # On demo `max_length` is 16: the data set's own defaults count.
        (
            {"config": '{"raserec_pretrained": {"context_stride": 17}}'},
            "error: CONFIG: raserec_pretrained: context_stride = 17 exceeds max_length = 16",
        ),
        (
            {"config": '{"raw_interactions": {"force": "maybe"}}'},
            'error: CONFIG: Invalid scalar at path root:ops:raw_interactions:config:force. Value "maybe"',
        ),
    ],
)
def test_wrong_arguments_end_with_one_line_before_anything_runs(arguments, message, tmp_path):
    defaults = {"dataset": "demo", "track": "everything", "config": "{}"}
    with pytest.raises(SystemExit) as caught:
        main(**{**defaults, **arguments})
    text = str(caught.value)
    assert text.startswith(message)
    assert "\n" not in text
    assert not (tmp_path / "artifacts").exists()


def test_wrong_environment_ends_with_one_line(monkeypatch):
    monkeypatch.setenv("RAREC_NPROC", "two")
    with pytest.raises(SystemExit, match=r"^error: RAREC_NPROC is 'two'; set it to a whole number\.$"):
        main("demo", "everything", "{}")


OWN = """
name = "own"
title = "Own"
domain = "books"

[[sources]]
format = "recbole"

[overrides.raserec_pretraining]
dim = 8
"""


def test_the_command_ends_with_one_line_and_a_code(tmp_path):
    """As a user runs it, with a data set file that is refused while the definitions are loaded."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "own.toml").write_text(OWN)
    process = subprocess.run(
        [sys.executable, "-m", "pipelines.run"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert process.returncode == 1
    assert process.stdout == "demo, everything: starting\n"
    assert process.stderr.startswith("error: own.toml: [overrides.raserec_pretraining]: no such stage; stages with set")
    assert process.stderr.count("\n") == 1


def test_the_pages_are_served_on_the_loopback_interface_alone(monkeypatch):
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    monkeypatch.setattr(os, "environ", {**os.environ, "DAGSTER_PORT": ports[0], "MLFLOW_PORT": ports[1]})
    started = []
    monkeypatch.setattr(ui, "run_together", started.extend)
    ui.main()
    dagster, mlflow = started
    assert dagster[dagster.index("-h") + 1 : dagster.index("-p") + 2] == ["127.0.0.1", "-p", ports[0]]
    assert mlflow[mlflow.index("--host") + 1 : mlflow.index("--port") + 2] == ["127.0.0.1", "--port", ports[1]]


SERVE = """
import sys
from pipelines.ui import run_together
run_together([[module] for module in sys.argv[1:]])
"""


@pytest.fixture
def servers(tmp_path):
    """Modules: `waits` starts a child and both would run for minutes; `fails` ends at once with code 3."""
    (tmp_path / "waits.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)\n"
        "open(f'{__file__}.{child.pid}', 'w').close()\n"
        "time.sleep(300)\n"
    )
    (tmp_path / "fails.py").write_text(
        "import glob, sys, time\nwhile not glob.glob(f'{sys.path[0]}/waits.py.*'): time.sleep(0.1)\nsys.exit(3)\n"
    )

    def start(*modules: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        return subprocess.Popen(
            [sys.executable, "-c", SERVE, *modules],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def grandchildren(tmp_path) -> list[int]:
    return [int(path.suffix[1:]) for path in tmp_path.glob("waits.py.*")]


def lives(pid: int) -> bool:
    """Whether it runs; where nobody collects orphans, a dead one stays as a zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pages_end_together_with_all_they_started(servers, tmp_path, number):
    process = servers("waits", "waits")
    wait_until(lambda: len(grandchildren(tmp_path)) == 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "ending both\n"
    assert not any(map(lives, grandchildren(tmp_path)))


def test_pages_end_when_one_of_them_fails(servers, tmp_path):
    process = servers("waits", "fails")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: fails ended with exit code 3" in err
    assert not any(map(lives, grandchildren(tmp_path)))
