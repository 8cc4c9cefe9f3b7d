"""Two runs of the same model at once, what is tried again and what is not, with a training that is a function."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from places import HELPERS, child_environment
from waiting import wait_for
from workshop import Workshop

from assets.framework import build_lock, reuse
from assets.framework.training import RETRIES
from pipelines.definitions import build_defs
from rarec.errors import InputError
from resources.settings import Installation

TRAINED = {"base_language_model", "lora_checkpoint", "ctr_predictions", "raserec_pretrained", "raserec_finetuned"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(build_lock, "POLL_S", 0.02)


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def reused(result):
    (event,) = result.asset_materializations_for_node("model")
    return event.metadata["reused"].value


def up_for_retry(result):
    return sum(event.is_step_up_for_retry for event in result.all_events)


def assert_cancelled(result):
    """The run ended as interrupted, at once: no retry, and nothing after the step."""
    assert not result.success
    assert up_for_retry(result) == 0
    assert "Execution was interrupted unexpectedly" in result.all_events[-1].message
    assert not [event for event in result.all_events if event.step_key == "other"]


def two_at_once(workshop, first, second, force=False):
    """The first training goes on until the second run waits; both results, and the calls of the second training."""
    begun, go_on = threading.Event(), threading.Event()
    results, calls = {}, []

    def hold(checkpoint):
        begun.set()
        assert go_on.wait(20)
        return first(checkpoint)

    def follow(checkpoint):
        calls.append(checkpoint.exists() and (checkpoint / "state").read_text())
        return second

    waits = threading.Event()
    sleep = build_lock.time.sleep

    def slept(seconds):
        waits.set()
        sleep(seconds)

    one = threading.Thread(target=lambda: results.update(one=workshop.run(hold, force)))
    one.start()
    assert begun.wait(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_lock.time, "sleep", slept)
        two = threading.Thread(target=lambda: results.update(two=workshop.run(follow, force)))
        two.start()
        assert waits.wait(20)
        go_on.set()
        one.join()
        two.join()
    return results["one"], results["two"], calls


@pytest.mark.parametrize("force", [False, True])
def test_the_second_run_waits_and_uses_what_the_first_has_made(workshop, force):
    if force:
        workshop.run(lambda _: "old")
    opened = workshop.tracking.opened
    one, two, calls = two_at_once(workshop, lambda _: "first", "second", force)
    assert (one.success, reused(one)) == (True, False)
    assert (two.success, reused(two)) == (True, True)
    assert calls == []
    assert workshop.tracking.opened == opened + 1  # the one that only waited has no run in MLflow
    (weights,) = Path(workshop.store.root).glob("model/demo/*/weights")
    assert weights.read_text() == "first"
    told = [line for line in workshop.logs if "waiting for it" in line]
    assert told == [f"run {one.run_id} is building this artifact in {workshop.checkpoint.parent}; waiting for it"]


@pytest.mark.parametrize(("force", "found"), [(False, "epoch 3"), (True, False)])
def test_the_second_run_goes_on_where_the_first_failed_unless_forced(workshop, force, found):
    def fail(checkpoint):
        checkpoint.mkdir()
        (checkpoint / "state").write_text("epoch 3")
        raise InputError("the disk is full")

    one, two, calls = two_at_once(workshop, fail, "second", force)
    assert not one.success
    assert (two.success, reused(two)) == (True, False)
    assert calls == [found]
    assert not workshop.checkpoint.exists()


def test_what_was_made_between_a_look_and_the_turn_is_used(workshop, monkeypatch):
    turn = reuse.build_lock

    @contextmanager
    def late(context, workdir):
        monkeypatch.setattr(reuse, "build_lock", turn)
        assert workshop.run(lambda _: "first").success  # another run, from beginning to end
        with turn(context, workdir):
            yield

    monkeypatch.setattr(reuse, "build_lock", late)
    result = workshop.run(lambda _: pytest.fail("trains again"))
    assert (result.success, reused(result)) == (True, True)


TRAIN_FOR_EVER = """
import multiprocessing, sys, time
from pathlib import Path
from workshop import Workshop

def train(checkpoint):
    checkpoint.mkdir()
    (checkpoint / "state").write_text("epoch 3")
    time.sleep(300)

def run():
    Workshop(Path(sys.argv[1])).run(train)

if sys.argv[2] == "step":  # in a process of its own, as where Dagster runs each step in one
    multiprocessing.get_context("fork").Process(target=run).start()
    time.sleep(300)
run()
"""


@pytest.mark.parametrize("where", ["run", "step"])
def test_a_run_takes_over_from_one_whose_process_was_killed(workshop, tmp_path, where):
    command = [sys.executable, "-c", TRAIN_FOR_EVER, str(tmp_path), where]
    process = subprocess.Popen(command, env=child_environment(HELPERS))
    seen = []

    def kill_when_waiting(record):
        if "waiting for it" in record.getMessage():
            process.send_signal(signal.SIGKILL)
        return True

    try:
        wait_for(lambda: list(tmp_path.glob("work/model/*/checkpoint/state")), 100, "the first run's checkpoint")
        build_lock.progress_log.addFilter(kill_when_waiting)
        build_lock.progress_log.setLevel("INFO")
        result = workshop.run(lambda checkpoint: seen.append((checkpoint / "state").read_text()) or "done")
    finally:
        build_lock.progress_log.removeFilter(kill_when_waiting)
        process.kill()
        process.wait()
    assert (result.success, seen) == (True, ["epoch 3"])


def test_ctrl_c_ends_the_waiting(workshop):
    """The first run holds the lock in another thread, the second is interrupted in this one."""
    begun, end = threading.Event(), threading.Event()
    first = threading.Thread(target=lambda: workshop.run(lambda _: (begun.set(), end.wait(20), "first")[2]))
    first.start()
    assert begun.wait(20)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        assert_cancelled(workshop.run(lambda _: "never"))
    finally:
        end.set()
        first.join()
    assert any("waiting for it" in line for line in workshop.logs)
    assert workshop.tracking.opened == 1


def test_transient_faults_are_tried_again_from_the_checkpoint_also_with_force(workshop):
    workshop.run(lambda _: "old")
    workshop.checkpoint.mkdir()  # of some earlier run that was given up
    seen = []

    def train(checkpoint):
        seen.append(checkpoint.exists())
        checkpoint.mkdir(exist_ok=True)
        if len(seen) == 1:
            raise dg.Failure("Training worker failed: killed by SIGKILL, as the system does when memory runs out.")
        if len(seen) == 2:
            raise ConnectionError("lost")
        return "new"

    result = workshop.run(train, force=True)
    assert (result.success, reused(result), up_for_retry(result)) == (True, False, 2)
    assert seen == [False, True, True]
    assert not workshop.checkpoint.exists()


def test_it_is_not_tried_for_ever(workshop):
    calls = []

    def train(_):
        calls.append(1)
        raise dg.Failure("killed by SIGKILL")

    result = workshop.run(train)
    assert not result.success
    assert len(calls) == RETRIES.max_retries + 1
    (event,) = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data.description == "killed by SIGKILL"


@pytest.mark.parametrize("error", [InputError("bad"), dg.Failure("bad", allow_retries=False)])
def test_bad_input_is_not_tried_again(workshop, error):
    calls = []

    def train(checkpoint):
        calls.append(checkpoint)
        raise error

    result = workshop.run(train)
    assert (result.success, up_for_retry(result), len(calls)) == (False, 0, 1)


def test_an_mlflow_that_is_away_at_the_start_is_not_tried_again(workshop):
    @contextmanager
    def away(*_):
        raise InputError("MLflow cannot be used")
        yield

    workshop.tracking.run = away
    result = workshop.run(lambda _: "never")
    assert (result.success, up_for_retry(result)) == (False, 0)


@pytest.mark.parametrize("error", [dg.DagsterExecutionInterruptedError, KeyboardInterrupt])
def test_a_cancel_is_never_tried_again_and_ends_the_run(workshop, error):
    calls = []

    def train(checkpoint):
        calls.append(checkpoint)
        checkpoint.mkdir()
        raise error

    assert_cancelled(workshop.run(train))
    assert len(calls) == 1
    assert workshop.checkpoint.exists()
    # The lock is free again.
    assert workshop.run(lambda _: "later").success


def test_every_asset_that_trains_has_the_policy(tmp_path):
    defs = build_defs(Installation.from_environment({"RAREC_HOME": str(tmp_path)}))
    with_policy = {
        key.to_user_string()
        for key in defs.resolve_all_asset_keys()
        if defs.resolve_assets_def(key).op.retry_policy == RETRIES
    }
    others = {"refreshed_finetuned", "rella_candidate", "rella_drift_report", "raserec_sweep", "rella_sweep"}
    others |= {"raserec_controls", "peer_rankings", "peer_predictions", "click_predictions"}
    assert with_policy == TRAINED | others
    assert [RETRIES.calculate_delay(attempt) for attempt in (1, 2, 3)] == [5, 15, 35]
