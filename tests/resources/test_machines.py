import json
import socket
import sys

import dagster as dg
import pytest

from rarec.errors import InputError
from rarec.training.worker.node import Assignment
from resources import machines as machines_module
from resources.machines import Announcement, Machines, read_hostfile
from resources.workers.launcher import TrainingLauncher

ASSIGNMENT = Assignment("module", "/work/job.json", processes=1)


def hostfile(folder, text):
    path = folder / "hostfile"
    path.write_text(text)
    return path


def test_hostfile_of_deepspeed(tmp_path):
    path = hostfile(tmp_path, "# the cluster\n\nworker-1 slots=4\n  10.0.0.2   slots=2  # older\n")
    assert read_hostfile(path) == {"worker-1": 4, "10.0.0.2": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a slots=2\nb slots=0\n",
            r"hostfile, line 2: 'b slots=0' is not of the form 'host slots=N' with N at least 1",
        ),
        ("# x\na\n", "hostfile, line 2: 'a' is not of the form"),
        ("-oProxyCommand=x slots=1\n", "hostfile, line 1: .* is not of the form"),
        ("a slots=1\n\na slots=2\n", "hostfile, line 3: host a is listed twice"),
        ("# nobody\n", "hostfile names no host"),
    ],
)
def test_hostfile_errors_name_file_and_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_hostfile(hostfile(tmp_path, text))


def test_hostfile_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"\(RAREC_HOSTFILE\) .*/none cannot be read: No such file or directory"):
        read_hostfile(tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hostfile": "h", "rendezvous": "a", "nodes": 2}, "both a hostfile .* and a rendezvous"),
        ({"hostfile": "h", "nproc": 2}, r"leave nproc \(RAREC_NPROC\) and nodes \(RAREC_NODES\) unset"),
        ({"hostfile": "h", "nodes": 2}, r"leave nproc \(RAREC_NPROC\) and nodes \(RAREC_NODES\) unset"),
        ({"rendezvous": "a"}, r"rendezvous \(RAREC_RENDEZVOUS\) is 'a' and nodes \(RAREC_NODES\) is 1"),
        ({"nodes": 3}, r"rendezvous \(RAREC_RENDEZVOUS\) is '' and nodes \(RAREC_NODES\) is 3"),
        ({"rendezvous": "a", "nodes": 2}, "set announced to a folder that the machines share"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        TrainingLauncher(device="cpu", **settings)._resolve()


def test_ranks_of_several_machines(tmp_path):
    path = hostfile(tmp_path, "a slots=4\nb slots=2\n")
    assert TrainingLauncher(hostfile=str(path), device="cuda")._resolve() == ("cuda", {"a": 4, "b": 2})
    joined = TrainingLauncher(rendezvous="a", nodes=3, nproc=2, device="cpu", announced=str(tmp_path))
    assert sum(joined._resolve()[1].values()) == 6


def test_host_whose_name_is_unknown_is_refused_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(machines_module, "READY_S", 10)
    said = "ssh: Could not resolve hostname far: Name or service not known"
    machines = Machines(tmp_path, "1")
    try:
        with pytest.raises(InputError, match=r"Host far of the launcher's hostfile cannot be resolved: ssh: Could not"):
            machines.start_on_hosts({"far": 1}, f"sh -c 'echo {said}; exit 255'", ASSIGNMENT)
    finally:
        machines.end(0.1)


@pytest.mark.parametrize(
    ("shell", "message"),
    [
        (  # its name server is away for a moment: no typing error
            "sh -c 'echo ssh: Could not resolve hostname far: Temporary failure in name resolution; exit 255'",
            "exit code 255 .*Temporary failure in name resolution",
        ),
        (
            f"{sys.executable} -c 'import sys; sys.exit(\"no route to host\")'",
            "exit code 1 .*It said:\nno route to host",
        ),
        (f"{sys.executable} -c 'import time; time.sleep(60)'", "no answer in 1 s"),
    ],
    ids=["cannot ask", "refuses", "hangs"],
)
def test_host_that_cannot_be_reached_is_named(tmp_path, monkeypatch, shell, message):
    monkeypatch.setattr(machines_module, "READY_S", 1.0)
    (tmp_path / "node-far.txt").write_text("RaRec's node agent is ready; a free port: 1\n")  # of an earlier attempt
    machines = Machines(tmp_path, "id")
    try:
        with pytest.raises(dg.Failure, match=r"(?s)Host far of the launcher's hostfile cannot be used: " + message):
            machines.start_on_hosts({"far": 1}, shell, ASSIGNMENT)
    finally:
        assert machines.end(1) == []


def test_agents_bear_no_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # as where the step itself runs under torchrun or in a training operator's pod
    machines = Machines(tmp_path, "id")
    try:
        machines._add("here", ["env"], tmp_path / "out").process.wait(10)
        assert [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("RANK=")] == []
    finally:
        machines.end(0)


def test_port_that_is_taken_is_named(tmp_path):
    machines = Machines(tmp_path, "id")
    try:
        with socket.socket() as other:
            other.bind(("", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(InputError, match=rf"port {port} of the launcher's rendezvous .*Address already in use"):
                machines.start_with_rendezvous(f"127.0.0.1:{port}", 2, tmp_path, ASSIGNMENT)
        for wrong in ("a:b", "a:99999999", "a b"):
            with pytest.raises(InputError, match="set it to host or host:port"):
                machines.start_with_rendezvous(wrong, 2, tmp_path, ASSIGNMENT)
        with pytest.raises(InputError, match="port 70000 of the launcher's rendezvous"):
            machines.start_with_rendezvous("a:70000", 2, tmp_path, ASSIGNMENT)
    finally:
        machines.end(1)


def test_announcement_is_private_refreshed_and_withdrawn(tmp_path):
    announcement = Announcement(tmp_path / "announced", "id", ASSIGNMENT)
    contents = []
    for stacks in (False, True, False):
        announcement.refresh(stacks=stacks)
        (file,) = (tmp_path / "announced").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        contents.append(json.loads(file.read_text()))
    assert [one["refreshed"] for one in contents] == [1, 2, 3]
    assert [one["stacks"] for one in contents] == [False, True, True]
    assert Assignment(**contents[0]["assignment"]) == ASSIGNMENT
    announcement.withdraw()
    assert list((tmp_path / "announced").iterdir()) == []
