import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest
from launcher_worker import ToyJob
from places import HELPERS, ROOT
from waiting import wait_for

from rarec.errors import InputError
from rarec.training.progress import Progress
from rarec.training.worker import worker_files as signs
from rarec.training.worker.worker_files import Heartbeat, leave_error
from resources.workers import launcher as launcher_module
from resources.workers.failures import Ending, Errors
from resources.workers.heartbeat_monitor import Pulse
from resources.workers.launcher import TrainingLauncher

pytestmark = pytest.mark.filterwarnings("ignore:.*expected_writer_count")  # Dagster's own use of a preview property


@pytest.fixture(autouse=True)
def worker_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{HELPERS}:{ROOT}")


def materialize(folder, job, partition=None, on_progress=None, **settings):
    """Materialise an asset that launches the test worker; returns the result and the failure of the step, if any."""
    partitions = dg.StaticPartitionsDefinition(["demo"]) if partition else None
    raised = []

    @dg.asset(partitions_def=partitions)
    def model(context: dg.AssetExecutionContext, training: TrainingLauncher) -> dg.MaterializeResult:
        try:
            asked = ToyJob(**job, folder=folder)
            training.launch(context, asked, folder, folder / "checkpoint", folder / "work", on_progress)
        except dg.Failure as failure:
            raised.append(failure)
            raise
        return dg.MaterializeResult()

    settings = {"device": "cpu", "nproc": 1, "threads_per_process": 1, "grace_s": 1, **settings}
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [model],
            instance=instance,
            partition_key=partition,
            resources={"training": TrainingLauncher(**settings)},
            raise_on_error=False,
        )
        result.raised = raised[0] if raised else None
        result.log_lines = [record.user_message for record in instance.all_logs(result.run_id)]
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return result, failures[0] if failures else None


def description(failure):
    return failure.user_failure_data.description


def processes_of(folder):
    """Processes that were started for this test: its folder is in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("RAREC_TEST_FOLDER") == str(folder):
                found.append((process.pid, process.cmdline()))
        except psutil.Error:
            continue
    return found


def environment(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_one_worker_runs_without_torchrun_with_the_same_environment(tmp_path):
    result, _ = materialize(tmp_path, {"mode": "environment"}, engine={"precision": "bf16"})
    assert result.success
    assert environment(tmp_path / "rank-0") == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    document = json.loads((tmp_path / "work" / "job.json").read_text())
    assert document["job"]["mode"] == "environment"
    assert document["place"] == {
        "output": str(tmp_path),
        "checkpoint": str(tmp_path / "checkpoint"),
        "engine": {"precision": "bf16"},
    }


def test_two_workers_meet_over_gloo_and_only_rank_0_reports(tmp_path):
    messages = []
    result, failure = materialize(tmp_path, {"mode": "reduce"}, nproc=2, on_progress=messages.append)
    assert result.success, failure
    assert messages == [Progress(stage="reduce", step=1, steps=1, metrics={"total": 3.0})]


def test_progress_reaches_the_caller_dagster_and_the_log(tmp_path):
    messages = []
    result, _ = materialize(tmp_path, {"mode": "train"}, partition="demo", on_progress=messages.append)
    assert result.success
    assert [message.step for message in messages] == [1, 2, 3, 4, 4]
    assert [message.loss for message in messages[:4]] == [1.0, 0.5, 1 / 3, 0.25]
    assert messages[0].metrics == {"hr": 0.5}
    observations = [e.asset_observation_data.asset_observation for e in result.all_events if e.is_asset_observation]
    assert [o.asset_key.to_user_string() for o in observations] == ["model", "model"]  # the first and the last
    assert [o.partition for o in observations] == ["demo", "demo"]
    first, last = ({name: value.value for name, value in o.metadata.items()} for o in observations)
    assert first == {"stage": "pretrain", "epoch": 1, "epochs": 1, "step": 1, "steps": 4, "loss": 1.0, "hr": 0.5}
    assert last["step"] == 4
    assert last["loss"] == "nan"
    assert last["ETA"] == "0 s"
    log = "\n".join(result.log_lines)
    assert "first line" in log
    assert "100 %" in log
    assert "50 %" not in log
    assert "last line without newline" in log
    assert (tmp_path / "work" / "log.txt").read_bytes().startswith(b"first line\n10 %\r50 %")


def test_observations_in_between_follow_the_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher_module, "OBSERVATION_INTERVAL_S", 0.0)
    result, _ = materialize(tmp_path, {"mode": "train"})
    assert sum(event.is_asset_observation for event in result.all_events) == 5


def test_input_error_of_a_worker_is_a_failure_without_retries(tmp_path):
    result, failure = materialize(tmp_path, {"mode": "bad input"})
    assert not result.success
    assert description(failure) == "The job has no encoder; set encoder to sasrec."
    assert failure.user_failure_data.metadata["exit code"].value == 2
    assert failure.error.cls_name == "Failure"
    assert not result.raised.allow_retries


@pytest.mark.parametrize("nproc", [1, 2])
def test_failed_worker_is_quoted_and_the_other_one_ended(tmp_path, monkeypatch, nproc):
    monkeypatch.setenv("RAREC_TEST_FOLDER", str(tmp_path))
    result, failure = materialize(tmp_path, {"mode": "error", "failing_rank": nproc - 1}, nproc=nproc)
    assert not result.success
    text = description(failure)
    assert text.startswith(
        f"Training worker {nproc - 1} failed: RuntimeError: loss is not finite (exit code 1; full log"
    )
    assert 'raise RuntimeError("loss is not finite")' in text
    assert result.raised.allow_retries
    assert processes_of(tmp_path) == []


def test_error_of_an_earlier_attempt_is_forgotten(tmp_path):
    materialize(tmp_path, {"mode": "bad input"})
    _, failure = materialize(tmp_path, {"mode": "killed"})
    assert description(failure).startswith(
        "Training worker 0 was killed by SIGKILL, as the system does when memory runs out. Last lines of"
    )


def test_killed_rank_is_named_with_its_own_last_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_TEST_FOLDER", str(tmp_path))
    (tmp_path / "work").mkdir()
    leave_error(tmp_path / "work", 5, message="of an attempt with more ranks", exit_code=1)
    result, failure = materialize(tmp_path, {"mode": "killed", "failing_rank": 1, "others": True}, nproc=2)
    assert description(failure) == (
        "Training worker 1 was killed by SIGKILL, as the system does when memory runs out. "
        f"Last lines of {tmp_path}/work/log-1.txt:\nlast words of 1"
    )
    assert result.raised.allow_retries
    assert any("[rank 0] noise of 0" in line for line in result.log_lines)
    assert failure.user_failure_data.metadata["exit code"].value == 128 + signal.SIGKILL
    assert processes_of(tmp_path) == []


def test_kill_is_laid_to_memory_if_the_system_counted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(signs, "CONTAINER_EVENTS", tmp_path / "missing")
    monkeypatch.setattr(signs, "MACHINE_EVENTS", tmp_path / "vmstat")
    assert signs.memory_kills() == 0
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    assert signs.memory_kills() == 3
    signs.leave_ended(tmp_path, 1, -signal.SIGKILL, memory_ran_out=True)
    assert json.loads((tmp_path / "error-1.json").read_text())["message"] == (
        "was killed by SIGKILL: the system ran out of memory"
    )


def test_out_of_memory_is_named(tmp_path):
    result, failure = materialize(tmp_path, {"mode": "memory"})
    assert description(failure).startswith(
        "Training worker 0 ran out of memory: MemoryError: bytearray of 9 TiB. Use smaller batches or more machines"
    )
    assert result.raised.allow_retries


def test_hung_rank_is_named_with_its_stack(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_TEST_FOLDER", str(tmp_path))
    silent = Pulse.silent

    def once_started(pulse, limit_s):  # the start may take longer than a test wants to wait for a hang
        started = (tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists()
        return silent(pulse, limit_s if started else 1000.0)

    monkeypatch.setattr(Pulse, "silent", once_started)
    job = {"mode": "hang", "failing_rank": 1, "at_step": 30}
    result, failure = materialize(tmp_path, job, nproc=2, heartbeat_s=4)
    text = description(failure)
    last = r"pretrain  epoch 1/2  step [23]\d/10000"
    assert re.match(
        rf"Training worker 1 hung: no sign of life for \d s \(heartbeat_s = 4\)\. It last reported: {last}\n", text
    )
    assert "Training worker 0" not in text
    assert "in hangs_here" in text
    log = "\n".join(result.log_lines)
    assert "Stacks of worker 0:" in log
    assert "Stacks of worker 1:" in log
    assert result.raised.allow_retries
    assert processes_of(tmp_path) == []


def test_a_training_with_machines_that_join_ends_when_every_rank_has(tmp_path, monkeypatch):
    """The agent here may end well while ranks elsewhere still work: torchrun waits for them for minutes only."""
    monkeypatch.setattr(launcher_module, "SETTLE_S", 0.1)
    silent = SimpleNamespace(forward=lambda: None)
    ended = SimpleNamespace(exit_code=lambda: 0)

    def wait(folder):
        folder.mkdir(exist_ok=True)
        launcher = TrainingLauncher(rendezvous="a", nodes=2, device="cpu", heartbeat_s=2)
        nobody = SimpleNamespace(unheard=lambda: False)
        return launcher._wait(ended, silent, silent, Errors(folder), Pulse(folder, 2), nobody)

    here, there = Heartbeat(tmp_path / "ends", 0), Heartbeat(tmp_path / "ends", 1)
    (tmp_path / "ends").mkdir()
    here.end()
    there.beat("test, 5 of 10")
    threading.Timer(0.5, there.end).start()
    started = time.monotonic()
    assert wait(tmp_path / "ends") == Ending(exit_code=0)
    assert time.monotonic() - started >= 0.5
    (tmp_path / "fails").mkdir()
    leave_error(tmp_path / "fails", 1, message="boom", exit_code=1)
    assert wait(tmp_path / "fails") == Ending()
    hung = wait(tmp_path / "silent")
    assert [one.rank for one in hung.hung] == [0, 1]


def test_environment_reaches_the_workers_and_no_log(tmp_path):
    settings = {"TOKEN_OF_TEST": "secret-7", "OMP_NUM_THREADS": "3"}
    job = {"mode": "environment", "names": ["TOKEN_OF_TEST"]}
    result, _ = materialize(tmp_path, job, environment=settings, threads_per_process=0)
    assert result.success
    got = environment(tmp_path / "rank-0")
    assert (got["TOKEN_OF_TEST"], got["OMP_NUM_THREADS"]) == ("secret-7", "3")
    assert not any("secret-7" in line for line in result.log_lines)
    assert not any("secret-7" in path.read_text() for path in (tmp_path / "work").iterdir())


def test_module_that_does_not_exist_shows_pythons_own_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    _, failure = materialize(tmp_path, {"mode": "train"})
    assert "exit code 1" in description(failure)
    assert "No module named launcher_worker" in description(failure)


def test_time_out_leaves_no_process_not_even_stubborn_or_orphaned_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_TEST_FOLDER", str(tmp_path))
    seen = []

    def let_time_pass(_):
        seen.extend(processes_of(tmp_path))
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000, sleep=time.sleep)
        monkeypatch.setattr(launcher_module, "time", later)

    result, failure = materialize(tmp_path, {"mode": "stubborn"}, nproc=2, timeout_s=500, on_progress=let_time_pass)
    assert not result.success
    assert "Training was stopped after timeout_s = " in description(failure)
    assert result.raised.allow_retries is False  # it would take as long again
    assert len(seen) >= 5  # torchrun, worker, child, grandchild and orphan were really there
    assert processes_of(tmp_path) == []


def test_exception_of_the_caller_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_TEST_FOLDER", str(tmp_path))

    def interrupt(_):
        assert len(processes_of(tmp_path)) >= 4
        raise dg.DagsterExecutionInterruptedError()

    result, _ = materialize(tmp_path, {"mode": "stubborn"}, on_progress=interrupt)
    assert not result.success
    assert any("interrupted" in line for line in result.log_lines)
    assert processes_of(tmp_path) == []


def test_a_cancelled_run_ends_though_the_signal_was_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_TEST_FOLDER", str(tmp_path))
    monkeypatch.setattr(launcher_module, "CANCEL_LOOK_S", 0.1)

    def cancel(_):
        context = dg.AssetExecutionContext.get()
        context.instance.report_run_canceling(context.run)

    result, _ = materialize(tmp_path, {"mode": "stubborn"}, on_progress=cancel, timeout_s=60)
    assert not result.success
    assert [event.event_type_value for event in result.all_events][-1] == "PIPELINE_CANCELED"
    assert processes_of(tmp_path) == []


STEP = """
import sys
from pathlib import Path
import dagster as dg
from launcher_worker import ToyJob
from resources.workers.launcher import TrainingLauncher

@dg.asset
def model(context: dg.AssetExecutionContext, training: TrainingLauncher) -> dg.MaterializeResult:
    folder = Path(sys.argv[1])
    job = ToyJob(mode=sys.argv[2], folder=folder)
    training.launch(context, job, folder, folder / "checkpoint", folder / "work")
    return dg.MaterializeResult()

launcher = TrainingLauncher(device="cpu", nproc=int(sys.argv[3]), threads_per_process=1, grace_s=1)
dg.materialize([model], resources={"training": launcher}, instance=dg.DagsterInstance.ephemeral())
"""


@pytest.mark.parametrize(
    ("number", "mode", "nproc"),
    [
        (signal.SIGINT, "stubborn", 1),
        (signal.SIGTERM, "stubborn", 1),
        ("SIGINT twice", "stubborn", 1),
        (signal.SIGKILL, "waiting", 1),
        (signal.SIGKILL, "waiting", 2),
    ],
)
def test_signal_to_the_dagster_process_leaves_no_worker(tmp_path, number, mode, nproc):
    step = subprocess.Popen(
        [sys.executable, "-c", STEP, str(tmp_path), mode, str(nproc)],
        env={**os.environ, "RAREC_TEST_FOLDER": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == nproc, seconds=60)  # a busy machine starts slowly
        if number == "SIGINT twice":
            step.send_signal(signal.SIGINT)
            time.sleep(0.5)  # the second comes while the first is waiting for stubborn workers
            number = signal.SIGINT
        step.send_signal(number)
        _, errors = step.communicate(timeout=20)
        assert step.returncode != 0
        if number != signal.SIGKILL:
            assert "DagsterExecutionInterruptedError" in errors or "KeyboardInterrupt" in errors
        assert "PreviewWarning" not in errors
        wait_for(lambda: processes_of(tmp_path) == [])
    finally:
        step.kill()


def test_settings_the_machine_cannot_fulfil(monkeypatch):
    monkeypatch.setattr(launcher_module, "_gpu_count", lambda: 0)
    assert TrainingLauncher()._resolve() == ("cpu", {"this machine": 1})
    assert TrainingLauncher(nproc=3)._resolve() == ("cpu", {"this machine": 3})
    with pytest.raises(InputError, match="device is 'cuda' but this machine shows no GPU"):
        TrainingLauncher(device="cuda")._resolve()
    monkeypatch.setattr(launcher_module, "_gpu_count", lambda: 4)
    assert TrainingLauncher()._resolve() == ("cuda", {"this machine": 4})
    assert TrainingLauncher(nproc=2)._resolve() == ("cuda", {"this machine": 2})
    assert TrainingLauncher(device="cpu")._resolve() == ("cpu", {"this machine": 1})
    with pytest.raises(InputError, match=r"nproc \(RAREC_NPROC\) is 8 but this machine has 4 GPU\(s\)"):
        TrainingLauncher(nproc=8)._resolve()
