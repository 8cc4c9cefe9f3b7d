import subprocess
import sys
import time
from dataclasses import replace

import pytest

from pipelines import join as join_module
from pipelines.join import Follower
from rarec.errors import InputError
from rarec.training.worker.node import Assignment
from resources.machines import Announcement

ASSIGNMENT = Assignment("module", "/work/job.json", processes=1, grace_s=1)
AGENT = "import sys; lines = sys.stdin.readlines(); open({said!r}, 'w').writelines(lines)"  # tells what it was told


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What the stand-in for the agent was told, once its input has ended."""
    path = tmp_path / "said"

    def start(assignment):
        command = [sys.executable, "-c", AGENT.format(said=str(path))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
        process.stdin.write(assignment.line())
        return process

    monkeypatch.setattr(join_module, "_start", start)
    return path


def test_training_is_joined_once_seen_alive_and_left_when_withdrawn(tmp_path, said):
    announcement = Announcement(tmp_path / "announced", "id", ASSIGNMENT)
    follower = Follower(tmp_path / "announced")
    announcement.refresh()
    for _ in range(3):
        follower.look()
    assert not said.exists()  # perhaps left by a launcher that was killed
    announcement.refresh()
    follower.look()
    announcement.refresh(stacks=True)
    for _ in range(3):
        follower.look()
    announcement.refresh()
    follower.look()
    announcement.withdraw()
    follower.look()
    assert said.read_bytes() == ASSIGNMENT.line() + b"\nstacks\n" + b"\n"


def test_training_that_is_not_refreshed_is_left_and_its_announcement_removed(tmp_path, said):
    announcement = Announcement(tmp_path / "announced", "id", ASSIGNMENT)
    follower = Follower(tmp_path / "announced", stale_s=0.2)
    announcement.refresh()
    follower.look()
    announcement.refresh()
    follower.look()
    time.sleep(0.3)
    follower.look()
    assert said.read_bytes() == ASSIGNMENT.line()
    assert list((tmp_path / "announced").iterdir()) == []
    announcement.refresh()  # the launcher had been asleep: its training is lost, and not joined again
    follower.look()
    follower.end()
    assert said.read_bytes() == ASSIGNMENT.line()


def test_folder_that_is_not_shared_is_named(tmp_path):
    elsewhere = replace(ASSIGNMENT, job_file=str(tmp_path / "not" / "here" / "job.json"))
    announcement = Announcement(tmp_path / "announced", "id", elsewhere)
    follower = Follower(tmp_path / "announced")
    announcement.refresh()
    follower.look()
    announcement.refresh()
    with pytest.raises(InputError, match=r"/not/here of an announced training does not exist here; mount RAREC_HOME"):
        follower.look()
