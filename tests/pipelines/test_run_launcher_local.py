"""Runs of the embedded instance whose process is gone are found; all others are left alone."""

import logging
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from waiting import wait_for

from pipelines.dagster_home import prepare_dagster_home
from pipelines.run_launcher_local import HOST_TAG, SKEW_S, LocalRunLauncher, _lives, _process_of
from resources.settings import Installation

WAITS = """
import os, socket, time
import dagster as dg

@dg.op
def wait():
    time.sleep(300)

@dg.job
def waits():
    wait()
"""
AS_MAKE_RUN = (
    "import sys, waits; waits.waits.execute_in_process(instance=waits.dg.DagsterInstance.get(), tags={%r: %s})"
)
HERE, ELSEWHERE = "waits.socket.gethostname()", "'another'"


@pytest.fixture
def instance(tmp_path, monkeypatch):
    """That of `make ui`, in a folder of its own with a job that waits for minutes."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "waits.py").write_text(WAITS)
    prepare_dagster_home(Installation.from_environment({"RAREC_HOME": str(tmp_path)}))
    with dg.DagsterInstance.get() as instance:
        yield instance
    del os.environ["DAGSTER_HOME"]


def started(instance, process):
    """The run that the process starts sooner or later, and the number of its process."""

    def found():
        assert process.poll() is None
        runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        return next(((run, one[0]) for run in runs if (one := _process_of(instance, run))), None)

    return wait_for(found, 120, "a run with a process", pause=0.2)


def status_after_a_look(instance, run):
    """What `dagster dev`'s daemon does every two minutes."""
    daemon = SimpleNamespace(instance=instance, create_request_context=lambda: None)
    assert [fault for fault in execute_run_monitoring_iteration(daemon, logging.getLogger()) if fault] == []
    return instance.get_run_by_id(run.run_id).status


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("host", "then"), [(HERE, "FAILURE"), (ELSEWHERE, "STARTED")])
def test_a_killed_make_run_is_found_on_its_own_machine(instance, tmp_path, host, then):
    assert isinstance(instance.run_launcher, LocalRunLauncher)
    process = subprocess.Popen([sys.executable, "-c", AS_MAKE_RUN % (HOST_TAG, host)], cwd=tmp_path)
    try:
        run, pid = started(instance, process)
        assert pid == process.pid
        assert status_after_a_look(instance, run).value == "STARTED"
    finally:
        process.kill()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not collected yet, it is a zombie, and gone all the same
    assert status_after_a_look(instance, run).value == then
    process.wait(10)
    assert status_after_a_look(instance, run).value == then


@pytest.mark.slow
def test_a_run_of_the_queue_is_found_when_it_is_lost_with_its_code_server(instance, tmp_path):
    """As a reboot under `make ui` does, whose daemon starts what waits in the queue."""
    command = [sys.executable, "-W", "ignore", "-m", "dagster"]
    daemon = subprocess.Popen([*command, "dev", "-f", "waits.py", "-p", str(free_port())], cwd=tmp_path)
    family = []
    try:
        subprocess.run([*command, "job", "launch", "-f", "waits.py", "-j", "waits"], cwd=tmp_path, check=True)
        run, pid = started(instance, daemon)
        assert status_after_a_look(instance, run).value == "STARTED"
    finally:
        family = [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]
        for one in family:
            one.kill()
        daemon.wait(10)
    assert pid in [one.pid for one in family]
    psutil.wait_procs(family, timeout=10)
    assert status_after_a_look(instance, run).value == "FAILURE"
    (told,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert f"its process {pid} is gone" in told.message


def test_a_number_given_anew_is_another_process():
    now = psutil.Process().create_time()
    assert _lives(os.getpid(), now + 5)
    assert _lives(os.getpid(), now - SKEW_S / 2), "the clock was set"
    assert not _lives(os.getpid(), now - 2 * SKEW_S)
