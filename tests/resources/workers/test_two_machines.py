"""Training across two machines that are network namespaces, through the path that real ones take."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from launcher_worker import ToyJob
from places import HELPERS, ROOT, child_environment
from raserec_toys import QUICK, chain_sequences
from two_machines import two_machines, why_not
from waiting import wait_for

from rarec.raserec.pretrain import PretrainJob

STEP = """
import json, sys
from importlib import import_module
from pathlib import Path
import dagster as dg
from resources.workers.launcher import TrainingLauncher

folder, module, name, settings = Path(sys.argv[1]), import_module(sys.argv[2]), sys.argv[3], json.loads(sys.argv[5])
job = getattr(module, name).model_validate_json(sys.argv[4])

@dg.asset
def model(context: dg.AssetExecutionContext, training: TrainingLauncher) -> dg.MaterializeResult:
    progress = (folder / "progress").open("a")
    show = lambda one: print(one.line(), file=progress, flush=True)
    training.launch(context, job, folder / "output", folder / "checkpoint", folder / "work", show)
    return dg.MaterializeResult()

launcher = TrainingLauncher(device="cpu", threads_per_process=1, grace_s=1, **settings)
dg.materialize([model], resources={"training": launcher}, instance=dg.DagsterInstance.ephemeral())
"""


@pytest.fixture(scope="module")
def machines():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with two_machines() as made:
        yield made


def step_command(folder, job, **settings):
    kind = (job.module, type(job).__name__)
    return [sys.executable, "-c", STEP, str(folder), *kind, job.model_dump_json(), json.dumps(settings)]


def environment(**more):
    return child_environment(HELPERS, OMP_NUM_THREADS="1", **more)


def run(command, **more):
    done = subprocess.run(
        command, env=environment(**more), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def hostfile(machines, folder):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "hosts.txt"
    file.write_text("# two machines\n" + "".join(f"{one} slots=1\n" for one in machines.addresses))
    return {"hostfile": str(file), "remote_shell": machines.shell}


@pytest.fixture
def follower(machines, tmp_path):
    """The second machine, which joins."""
    process = subprocess.Popen(
        machines.inside(1, [sys.executable, "-m", "pipelines.join"]),
        env=environment(RAREC_HOME=str(tmp_path / "home")),
        cwd=ROOT,
        stdout=(tmp_path / "follower.txt").open("w"),
        stderr=subprocess.STDOUT,
    )
    yield process
    process.terminate()
    process.wait(30)


def test_hostfile_starts_ranks_on_both_machines(machines, tmp_path):
    job = ToyJob(mode="reduce", folder=tmp_path)
    run(step_command(tmp_path, job, **hostfile(machines, tmp_path)))
    assert (tmp_path / "progress").read_text() == "reduce  step 1/1  total 3\n"
    assert machines.processes() == []


@pytest.mark.slow
def test_pretraining_on_two_machines_is_that_on_one(machines, tmp_path, follower):
    """By hostfile and by rendezvous. The sums run in the same order, the interface alone differs: equal to rounding."""
    (tmp_path / "sequences").mkdir()
    chain_sequences().save(tmp_path / "sequences")
    histories = {}
    rendezvous = {"rendezvous": machines.addresses[0], "nodes": 2, "nproc": 1}
    for name, command in {
        "one machine": lambda *a: step_command(*a, nproc=2),
        "hostfile": lambda *a: step_command(*a, **hostfile(machines, tmp_path)),
        "rendezvous": lambda *a: machines.inside(
            0, step_command(*a, **rendezvous, announced=str(tmp_path / "home" / "announced"))
        ),
    }.items():
        folder = tmp_path / name.replace(" ", "_")
        (folder / "output").mkdir(parents=True)
        run(command(folder, PretrainJob(settings=QUICK, sequences=tmp_path / "sequences")))
        summary = json.loads((folder / "checkpoint" / "summary.json").read_text())
        assert summary["world_size"] == 2
        histories[name] = [record["loss"] for record in summary["history"]]
    assert histories["hostfile"] == pytest.approx(histories["one machine"], rel=1e-6)
    assert histories["rendezvous"] == pytest.approx(histories["one machine"], rel=1e-6)
    assert histories["one machine"][-1] < 0.9 * histories["one machine"][0]
    follower.terminate()
    follower.wait(30)
    assert machines.processes() == []
    assert list((tmp_path / "home" / "announced").iterdir()) == []


def launch(machines, folder, mode, way, **job):
    """Start a Dagster step that trains across both machines, and wait until both ranks are at work."""
    job = ToyJob(mode=mode, folder=folder, **job)
    if way == "hostfile":
        command = step_command(folder, job, **hostfile(machines, folder))
    else:
        announced = str(folder / "home" / "announced")
        settings = {"rendezvous": f"{machines.addresses[0]}:29533", "nodes": 2, "nproc": 1, "announced": announced}
        command = machines.inside(0, step_command(folder, job, **settings))
    step = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(folder.glob("ready-*"))) == 2, 60, "both ranks at work")
    assert len(machines.processes()) >= 4  # an agent and a rank on each
    return step


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("way", ["hostfile", "rendezvous"])
def test_launcher_that_is_ended_leaves_no_process_on_any_machine(machines, tmp_path, request, way, number):
    follower = request.getfixturevalue("follower") if way == "rendezvous" else None
    step = launch(machines, tmp_path, "waiting", way)
    step.send_signal(number)
    step.communicate(timeout=60)
    own = [] if follower is None else [follower.pid]  # goes on waiting for trainings
    wait_for(lambda: [pid for pid in machines.processes() if pid not in own] == [], 120, "nothing is left")


@pytest.mark.slow
def test_rank_killed_on_the_other_machine_is_named(machines, tmp_path):
    step = launch(machines, tmp_path, "waiting", "hostfile")
    (victim,) = [
        process.pid for process in map(psutil.Process, machines.processes()) if process.environ().get("RANK") == "1"
    ]
    os.kill(victim, signal.SIGKILL)
    _, errors = step.communicate(timeout=60)
    assert "Training worker 1 was killed by SIGKILL" in errors
    assert machines.processes() == []


@pytest.mark.slow
def test_stacks_come_from_the_machine_that_joined(machines, tmp_path, follower):
    settings = {"rendezvous": machines.addresses[0], "nodes": 2, "nproc": 1, "heartbeat_s": 25}
    job = ToyJob(mode="waiting", folder=tmp_path)
    announced = str(tmp_path / "home" / "announced")
    command = machines.inside(0, step_command(tmp_path, job, **settings, announced=announced))
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "hung: no sign of life for" in done.stderr
    assert "Stacks of worker 0:" in done.stderr
    assert "Stacks of worker 1:" in done.stderr
    wait_for(lambda: machines.processes() == [follower.pid], 60)  # the other machine looks once a second
