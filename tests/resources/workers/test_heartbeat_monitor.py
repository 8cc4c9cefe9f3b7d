"""Whether every rank shows life."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

from rarec.training.worker.worker_files import Heartbeat
from resources.workers.heartbeat_monitor import Pulse


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
