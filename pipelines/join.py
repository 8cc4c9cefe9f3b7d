"""`python -m pipelines.join`: join the trainings of another machine, until SIGTERM or Ctrl-C.

The launcher on that machine has `RAREC_RENDEZVOUS` and `RAREC_NODES` set and the same `RAREC_HOME`, on a file system
that both share. It announces each training there and refreshes the announcement while it lives. This machine joins
trainings whose announcements it has seen refreshed, and leaves when an announcement is withdrawn or stale.
"""

import json
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rarec.errors import InputError
from rarec.training.worker.node import LOST_S, STACKS, Assignment
from rarec.training.worker.process_tree import KILL_WAIT_S
from resources.settings import Installation

LOOK_INTERVAL_S = 1.0


@dataclass
class Joined:
    """One announced training, as seen from here."""

    content: str
    refreshed_at: float
    agent: subprocess.Popen[bytes] | None = None
    grace_s: float = 0.0
    asked_for_stacks: bool = False


class Follower:
    """Watches the announcements and runs an agent for each live training."""

    def __init__(self, folder: Path, stale_s: float = LOST_S) -> None:
        self._folder = folder
        self._stale_s = stale_s
        self._trainings: dict[str, Joined] = {}

    def look(self) -> None:
        """Join new live trainings, leave withdrawn or stale ones, and pass on requests."""
        now = time.monotonic()
        announced = {path.name: _read(path) for path in self._folder.glob("[!.]*.json")}
        for name, content in announced.items():
            if content is None:
                continue
            if name not in self._trainings:
                self._trainings[name] = Joined(content, now)
                continue
            training = self._trainings[name]
            if content != training.content:
                training.content, training.refreshed_at = content, now
                _follow(training)
        for name, training in self._trainings.items():
            if name not in announced:
                _leave(name, training)
            elif now - training.refreshed_at > self._stale_s:  # the launcher was killed and cannot withdraw it
                _leave(name, training)
                (self._folder / name).unlink(missing_ok=True)

    def end(self) -> None:
        """Leave every training."""
        for name, training in self._trainings.items():
            _leave(name, training)


def _follow(training: Joined) -> None:
    announcement = json.loads(training.content)
    if training.agent is None:
        assignment = Assignment(**announcement["assignment"])
        print(f"joining {assignment.module} in {assignment.folder}", flush=True)
        training.grace_s = assignment.grace_s
        training.agent = _start(assignment)
    elif training.agent.poll() is None:
        _send(training.agent, b"\n")
        if announcement["stacks"] and not training.asked_for_stacks:
            training.asked_for_stacks = True
            _send(training.agent, f"{STACKS}\n".encode())


def _leave(name: str, training: Joined) -> None:
    agent = training.agent
    if agent is None or agent.stdin is None or agent.stdin.closed:
        return
    agent.stdin.close()
    try:
        agent.wait(training.grace_s + KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        agent.kill()  # its ranks watch it and end, too
    print(f"left {name}: exit code {agent.wait()}", flush=True)


def _start(assignment: Assignment) -> subprocess.Popen[bytes]:
    if not assignment.folder.is_dir():
        raise InputError(
            f"the working folder {assignment.folder} of an announced training does not exist here; mount RAREC_HOME "
            "under the same path on every machine"
        )
    output = assignment.folder / f"node-{uuid.uuid4().hex[:8]}.txt"
    with output.open("ab") as stream:
        agent = subprocess.Popen(
            [sys.executable, "-m", "rarec.training.worker.node"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
    _send(agent, assignment.line())
    return agent


def _send(agent: subprocess.Popen[bytes], line: bytes) -> None:
    assert agent.stdin is not None
    try:
        agent.stdin.write(line)
    except OSError:  # it has ended
        return


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # withdrawn at this moment
        return None


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Follow until SIGTERM or Ctrl-C."""
    folder = Installation.from_environment().announced
    signal.signal(signal.SIGTERM, _stop)
    follower = Follower(folder)
    print(f"waiting for trainings announced in {folder}", flush=True)
    try:
        while True:
            follower.look()
            time.sleep(LOOK_INTERVAL_S)
    except KeyboardInterrupt:
        print("ending", flush=True)
    finally:
        follower.end()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
