"""The files by which a rank tells how it fares."""

import json
import signal

import pytest

from rarec.training.progress import ProgressReporter
from rarec.training.worker import worker_files
from rarec.training.worker.worker_files import Heartbeat, clear_signs, leave_ended, leave_error, memory_kills


def test_every_rank_beats_at_most_once_a_second_whatever_the_wall_clock_does(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(worker_files.time, "time", lambda: 0.0)
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


def test_signs_of_one_rank_or_all_are_cleared(tmp_path):
    for rank in (1, 11):
        Heartbeat(tmp_path, rank).beat("start")
        leave_error(tmp_path, rank, message="m", exit_code=1)
    clear_signs(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive-11", "error-11.json"]
    clear_signs(tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = "was killed by SIGKILL"


@pytest.mark.parametrize(
    ("exit_code", "memory_ran_out", "message", "told"),
    [
        (3, False, "ended with exit code 3", {"exit_code": 3}),
        (
            -9,
            False,
            "was killed by SIGKILL, as the system does when memory runs out",
            {"exit_code": 137, "signal": "SIGKILL"},
        ),
        (-9, True, f"{KILLED}: the system ran out of memory", {"exit_code": 137, "signal": "SIGKILL"}),
        (-15, True, "was killed by SIGTERM", {"exit_code": 143, "signal": "SIGTERM"}),
    ],
)
def test_an_end_without_a_word_is_explained_by_its_exit_code(tmp_path, exit_code, memory_ran_out, message, told):
    leave_ended(tmp_path, 2, exit_code, memory_ran_out)
    error = json.loads((tmp_path / "error-2.json").read_text())
    assert error.pop("time") >= 0
    assert error == {"rank": 2, "message": message, **told}


def test_a_ranks_own_word_stands(tmp_path):
    leave_error(tmp_path, 2, message="loss is not finite", exit_code=1)
    leave_ended(tmp_path, 2, -signal.SIGKILL, False)
    assert json.loads((tmp_path / "error-2.json").read_text())["message"] == "loss is not finite"
    assert [path.name for path in tmp_path.iterdir()] == ["error-2.json"]


def test_processes_ended_for_want_of_memory_are_counted_in_this_container_or_on_this_machine(tmp_path, monkeypatch):
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    monkeypatch.setattr(worker_files, "CONTAINER_EVENTS", container)
    monkeypatch.setattr(worker_files, "MACHINE_EVENTS", machine)
    assert memory_kills() == 0
    machine.write_text("pgfault 12\noom_kill 3\n")
    assert memory_kills() == 3
    container.write_text("low 0\noom 4\noom_kill 1\n")
    assert memory_kills() == 1
