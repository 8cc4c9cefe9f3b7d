import json
import signal
import subprocess
import sys

import psutil
import pytest
from places import ROOT, child_environment
from waiting import wait_for

from rarec.training.worker import node
from rarec.training.worker.node import READY, Assignment

WORKER = """
import os, sys, time
from pathlib import Path
from rarec.training.job import WorkerJob
from rarec.training.progress import worker_main

class SleepingJob(WorkerJob):
    started: Path

def work(job, place, reporter):
    job.started.write_text(str(os.getpid()))
    time.sleep(300)

worker_main(SleepingJob, work)
"""
SHORT_OF_WORD = "from rarec.training.worker import node; node.LOST_S = 1.0; node.main()"


@pytest.fixture
def agent(tmp_path):
    """Starts an agent with a sleeping worker; gives the agent and its worker's pid."""
    (tmp_path / "sleeping_worker.py").write_text(WORKER)
    place = {"output": str(tmp_path), "checkpoint": str(tmp_path)}
    job = {"started": str(tmp_path / "started")}
    (tmp_path / "job.json").write_text(json.dumps({"job": job, "place": place}))
    started = []

    def start(*command, before=b""):
        process = subprocess.Popen(
            [sys.executable, *command],
            env=child_environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        started.append(process)
        assignment = Assignment("sleeping_worker", str(tmp_path / "job.json"), processes=1, grace_s=1)
        process.stdin.write(before + assignment.line())
        wait_for(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text())
        return process, int((tmp_path / "started").read_text())

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("way", ["end of input", "SIGTERM", "SIGKILL", "nothing heard"])
def test_agent_leaves_no_worker(agent, way):
    process, worker = (
        agent("-c", SHORT_OF_WORD) if way == "nothing heard" else agent("-m", "rarec.training.worker.node")
    )
    if way == "end of input":
        process.stdin.close()
    elif way != "nothing heard":
        process.send_signal(signal.Signals[way])
    wait_for(lambda: not psutil.pid_exists(worker))
    assert process.wait(20) == (-signal.SIGKILL if way == "SIGKILL" else 128 + signal.SIGTERM)


def test_signs_of_life_before_the_assignment_are_no_assignment(agent):
    process, worker = agent("-m", "rarec.training.worker.node", before=b"\n\n")  # as behind a slow remote shell
    assert psutil.pid_exists(worker)
    process.stdin.close()
    assert process.wait(20) == 128 + signal.SIGTERM


def test_a_foreign_rank_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    assert "RANK" not in Assignment("m", "/job.json", processes=2).worker_environment()
    assert Assignment("m", "/job.json", processes=1).worker_environment()["RANK"] == "0"


def test_agent_writes_stacks_when_asked_and_shows_that_it_is_ready(agent, tmp_path):
    process, worker = agent("-m", "rarec.training.worker.node", "ready")
    assert process.stdout.readline().decode().startswith(READY)
    process.stdin.write(b"\nstacks\n")
    wait_for(lambda: "in work" in (tmp_path / "stacks-0.txt").read_text())
    assert psutil.pid_exists(worker)  # asking ends nothing
    assert (tmp_path / "alive-0").read_text() == "1 start"


def test_agent_without_an_assignment_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "rarec.training.worker.node"],
        cwd=ROOT,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "The launcher ended before it sent an assignment.\n"


def test_commands_of_each_way_to_meet(monkeypatch):
    monkeypatch.setattr(node, "_own_address", lambda host: "10.0.0.7")

    def options(**how):
        command = Assignment("m", "/w/job.json", **how).command()
        assert command[0] == sys.executable
        assert command[-3:] == ["-m", "m", "/w/job.json"]
        return command[1:-3]

    assert options(processes=1) == []
    ranks = ["-m", "rarec.training.worker.torchrun_worker"]
    two = ["--nnodes=2", "--nproc-per-node=4"]
    assert options(processes=2) == [
        *(*ranks, "--nnodes=1", "--nproc-per-node=2", "--standalone", "--local-addr=127.0.0.1")
    ]
    assert options(processes=4, nodes=2, node_rank=1, address="a:7") == [
        *(*ranks, *two, "--node-rank=1", "--master-addr=a", "--master-port=7")
    ]
    assert options(processes=4, nodes=2, address="a:7", rendezvous_id="x", hosts_rendezvous=True) == [
        *(*ranks, *two, "--rdzv-backend=c10d", "--rdzv-endpoint=a:7", "--rdzv-id=x"),
        *("--rdzv-conf=is_host=1", "--local-addr=10.0.0.7"),
    ]


def test_interface_is_that_which_reaches_the_others_unless_it_is_named(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setattr(node, "_interface", lambda host: {"a": "eth1", "127.0.0.1": None}[host])

    def names(**how):
        environment = Assignment("m", "/w/job.json", processes=1, **how).worker_environment()
        return environment.get("GLOO_SOCKET_IFNAME"), environment["NCCL_SOCKET_IFNAME"]

    assert names(nodes=2, address="a:7") == ("eth1", "ib0")
    assert names(nodes=2, address="127.0.0.1:7") == (None, "ib0")
    assert names(nodes=2, address="a:7", environment={"GLOO_SOCKET_IFNAME": "eth0"}) == ("eth0", "ib0")


def test_own_address_towards_this_machine():
    assert node._own_address("127.0.0.1") == "127.0.0.1"
    assert node._interface("127.0.0.1") is None
