"""`make ui`: two servers on the loopback interface that end together."""

import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from places import child_environment
from waiting import wait_for

from pipelines import ui
from rarec.errors import InputError


def test_the_pages_are_served_on_the_loopback_interface_alone(tmp_path, monkeypatch):
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    own = {"RAREC_HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": ""}
    monkeypatch.setattr(os, "environ", {**os.environ, **own, "DAGSTER_PORT": ports[0], "MLFLOW_PORT": ports[1]})
    started = []
    monkeypatch.setattr(ui, "run_together", lambda commands, pages: started.extend((*commands, pages)))
    ui.main()
    dagster, mlflow, pages = started
    assert pages == {
        f"{name} at http://127.0.0.1:{port}": f"http://127.0.0.1:{port}"
        for name, port in zip(("Dagster", "MLflow"), ports, strict=True)
    }
    assert int(os.environ["DAGSTER_GRPC_TIMEOUT_SECONDS"]) >= 300  # beside a training, a minute is short
    assert dagster[dagster.index("-h") + 1 : dagster.index("-p") + 2] == ["127.0.0.1", "-p", ports[0]]
    assert mlflow[mlflow.index("--host") + 1 : mlflow.index("--port") + 2] == ["127.0.0.1", "--port", ports[1]]


SERVE = """
import sys
from pipelines.ui import run_together
pages = dict(one.split("=") for one in sys.argv if "=" in one)
run_together([[one] for one in sys.argv[1:] if "=" not in one], pages)
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
        environment = child_environment(tmp_path)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pages_end_together_with_all_they_started(servers, tmp_path, number):
    process = servers("waits", "waits")
    wait_for(lambda: len(grandchildren(tmp_path)) == 2, 60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "stopping both\n"
    assert not any(map(lives, grandchildren(tmp_path)))


def test_pages_end_when_one_of_them_fails(servers, tmp_path):
    process = servers("waits", "fails")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: fails exited with code 3" in err
    assert not any(map(lives, grandchildren(tmp_path)))


def test_each_page_is_told_when_it_answers(servers, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "serves.py").write_text(
        "import http.server, time\ntime.sleep(1)\n"
        f"http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')\n"
    )
    process = servers("waits", "serves", f"Page=http://127.0.0.1:{port}")
    told = next(line for line in process.stdout if line.startswith("Page"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert re.fullmatch(r"Page is ready after \d+ s\.\n", told)


def test_a_port_in_use_is_named_with_its_variable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^port {port} is in use; choose another: make ui DAGSTER_PORT="):
            ui.require_free("DAGSTER_PORT", port)
