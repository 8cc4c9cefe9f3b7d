"""Signs of life, and which of several errors is the cause."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import dagster as dg
import pytest

from rarec.training.progress import ProgressReporter
from rarec.training.worker.worker_files import Heartbeat, clear_signs, leave_ended, leave_error
from resources.workers import heartbeat_monitor as pulse_module
from resources.workers.failures import Ending, Errors, failure
from resources.workers.heartbeat_monitor import Pulse
from resources.workers.log_follower import OutputFollower


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(pulse_module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_rank_without_reports_is_silent_and_one_at_its_end_is_not(tmp_path, clock):
    beats = {rank: Heartbeat(tmp_path, rank) for rank in (0, 1, 2)}
    pulse = Pulse(tmp_path, 4)  # rank 3 never starts
    for beat in beats.values():
        beat.beat("start")
    assert pulse.silent(10) == []
    beats[2].end()
    for second in range(1, 12):
        clock.now = 100.0 + second
        beats[0].beat(f"step {second}")
        silent = pulse.silent(10)
    assert [(one.rank, one.seconds, one.doing) for one in silent] == [
        (1, 11.0, "start"),
        (3, 11.0, "nothing: it never started"),
    ]


def test_every_rank_beats_at_most_once_a_second_whatever_the_wall_clock_does(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(pulse_module.time, "time", lambda: 0.0)
    monkeypatch.setenv("RANK", "1")  # reports nothing
    seen = []
    with ProgressReporter(heartbeat=Heartbeat(tmp_path, 1)) as reporter:
        for tenth in range(25):
            clock.now = 100 + tenth / 10
            reporter.report(stage="pretrain", step=tenth, steps=25)
            seen.append((tmp_path / "alive-1").read_text())
    assert sorted(set(seen)) == [
        "1 pretrain  step 0/25",
        "2 pretrain  step 10/25",
        "3 pretrain  step 20/25",
    ]


def test_forced_report_is_a_sign_of_life_however_soon_after_the_last(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    heartbeat = Heartbeat(tmp_path, 1)
    heartbeat.beat("start")
    with ProgressReporter(heartbeat=heartbeat) as reporter:
        clock.now += 0.1
        reporter.report(stage="memories are read")
        assert (tmp_path / "alive-1").read_text() == "1 start"
        reporter.report(stage="neighbour lists", step=0, steps=9, force=True)
    assert (tmp_path / "alive-1").read_text() == "2 neighbour lists  step 0/9"


def test_beat_that_cannot_be_written_ends_nothing_and_the_next_one_is_tried(tmp_path):
    folder = tmp_path / "away"
    heartbeat = Heartbeat(folder, 0)
    heartbeat.beat("start")
    assert not folder.exists()
    folder.mkdir()
    heartbeat.beat("step 2")
    assert (folder / "alive-0").read_text() == "2 step 2"


def test_full_disk_is_no_silence(tmp_path, clock, monkeypatch):
    """What is there can be touched: that is a sign of life, though its text is the one before."""
    monkeypatch.setattr(Path, "write_text", refuse := Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    full, silent = Heartbeat(tmp_path, 0), Heartbeat(tmp_path, 1)
    for rank in (0, 1):
        (tmp_path / f"alive-{rank}").write_bytes(b"1 step 1")
        os.utime(tmp_path / f"alive-{rank}", (1, 1))
    pulse = Pulse(tmp_path, 2)
    assert pulse.silent(10) == []
    clock.now += 20
    full.beat("step 2")
    assert [(one.rank, one.seconds, one.doing) for one in pulse.silent(10)] == [(1, 20.0, "step 1")]
    assert refuse.call_count == 1
    silent.beat("step 2")
    clock.now += 5
    assert pulse.silent(10) == []


def test_signs_of_one_rank_or_all_are_cleared(tmp_path):
    for rank in (1, 11):
        Heartbeat(tmp_path, rank).beat("start")
        leave_error(tmp_path, rank, message="m", exit_code=1)
    clear_signs(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive-11", "error-11.json"]
    clear_signs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def error(folder, rank, kind, message, **details):
    details = {"traceback": "tb", "input_error": False, **details}
    leave_error(folder, rank, message=message, exit_code=1, type=kind, **details)


@pytest.mark.parametrize(
    ("leave", "text"),
    [
        (lambda f: error(f, 2, "ValueError", "x"), "Training worker 2 failed: ValueError: x (exit code 1"),
        (lambda f: leave_ended(f, 1, -9, False), "Training worker 1 was killed by SIGKILL"),
        (lambda f: leave_ended(f, 1, 3, False), "Training worker 1 ended with exit code 3"),
        (lambda f: error(f, 3, "OutOfMemoryError", "CUDA"), "Training worker 3 ran out of memory: OutOfMemoryError"),
        (lambda f: error(f, 1, "InputError", "set it", input_error=True), "set it"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_cause_is_told_from_its_consequences(tmp_path, leave, text, first):
    errors = Errors(tmp_path)
    if first:
        leave(tmp_path)
        errors.look()
    error(tmp_path, 0, "RuntimeError", "[gloo] Connection closed by peer [10.0.0.2]:4711")
    leave_ended(tmp_path, 4, -15, False)  # torchrun ends the ranks beside a failed one
    errors.look()
    if not first:
        leave(tmp_path)
    output = OutputFollower(tmp_path, dg.build_asset_context())
    assert str(failure(Ending(exit_code=1), errors, output, {}, tmp_path).description).startswith(text)


def test_of_equal_errors_the_first_seen_is_the_cause(tmp_path):
    errors = Errors(tmp_path)
    assert not errors.look()
    error(tmp_path, 1, "ValueError", "first")
    assert errors.look()
    error(tmp_path, 0, "ValueError", "second")
    errors.look()
    assert errors.cause()["message"] == "first"
