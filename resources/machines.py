"""The machines of one training: this one, those of a hostfile, or those that join by themselves; each has an agent.

The agent (`rarec.training.worker.node`) runs the machine's ranks and ends them when its standard input ends. On hosts
of a hostfile that input comes through a remote shell, on machines that join from `pipelines.join`, which follows the
training's announcement in a shared folder.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import dagster as dg

from rarec.errors import InputError
from rarec.training.worker.node import READY, STACKS, Assignment, free_port
from rarec.training.worker.process_tree import KILL_WAIT_S, LAUNCH_ID, end_processes

REFRESH_S = 2.0  # between refreshes of the announcement and signs of life to the agents
READY_S = 60.0  # for a remote shell to connect and start Python there
# Of this process's variables, those that hosts of a hostfile get; `environment` adds others. ssh's messages for an
# unknown host name; if the look-up failed, it says "temporary failure" instead.
UNRESOLVED = re.compile("(?i)(name or service|nodename nor servname).* not known|no address associated with hostname")
PASSED_ON = ("PYTHONPATH", "RAREC_", "NCCL_", "GLOO_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "TORCH_", "DS_")


class Node:
    """One machine's agent, as seen from here."""

    def __init__(self, name: str, command: list[str], output: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.output = output
        with output.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # Ctrl-C reaches only Dagster, which then ends the agents
            )
        self._lock = threading.Lock()

    def send(self, line: bytes) -> None:
        """Send one line; does nothing if the agent has ended."""
        assert self.process.stdin is not None
        with self._lock, suppress(OSError, ValueError):
            self.process.stdin.write(line)

    def release(self) -> None:
        """Tell the agent to end everything it runs."""
        assert self.process.stdin is not None
        with self._lock, suppress(OSError):
            self.process.stdin.close()


class Announcement:
    """A training in the shared folder, for machines to join: a file that is refreshed while the training lasts."""

    def __init__(self, folder: Path, launch_id: str, assignment: Assignment) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{launch_id}.json"
        self._content = {"refreshed": 0, "stacks": False, "assignment": asdict(assignment)}
        self._lock = threading.Lock()

    def refresh(self, stacks: bool = False) -> None:
        """Rewrite it, readable only by this user: it holds environment variables.

        Args:
            stacks: ask every machine for its ranks' stacks.
        """
        with self._lock:
            self._content["refreshed"] = int(str(self._content["refreshed"])) + 1
            self._content["stacks"] = stacks or self._content["stacks"]
            beside = self._path.with_suffix(".new")
            beside.touch(mode=0o600)
            beside.write_text(json.dumps(self._content), encoding="utf-8")
            os.replace(beside, self._path)

    def withdraw(self) -> None:
        """Tell the machines to end their ranks."""
        with self._lock:
            self._path.unlink(missing_ok=True)


class Machines:
    """Starts the agents, sends them signs of life, and ends them."""

    def __init__(self, workdir: Path, launch_id: str) -> None:
        self._workdir = workdir
        self._launch_id = launch_id
        self._nodes: list[Node] = []
        self._announcement: Announcement | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._keep_informed, name="agents", daemon=True).start()

    def start_here(self, assignment: Assignment) -> None:
        """Run ranks on this machine."""
        command = [sys.executable, "-m", "rarec.training.worker.node"]
        node = self._add("this machine", command, self._workdir / "log.txt")
        node.send(assignment.line())

    def start_on_hosts(self, hosts: Mapping[str, int], remote_shell: str, assignment: Assignment) -> None:
        """Run as many ranks on each host as it has slots; dg.Failure if one cannot be reached."""
        # The remote shell gets a command line for the shell on the host.
        there = (
            f"cd {shlex.quote(os.getcwd())} && exec {shlex.quote(sys.executable)} -m rarec.training.worker.node ready"
        )
        sizes = {}
        for host in hosts:
            output = self._workdir / f"node-{_as_file_name(host)}.txt"
            sizes[host] = output.stat().st_size if output.exists() else 0
            self._add(host, [*shlex.split(remote_shell), host, there], output)
        ports = [_wait_until_ready(node, sizes[node.name]) for node in self._nodes]
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        for number, node in enumerate(self._nodes):
            own = replace(
                assignment,
                processes=hosts[node.name],
                nodes=len(hosts),
                node_rank=number,
                address=f"{self._nodes[0].name}:{ports[0]}",
                environment={**passed_on, **assignment.environment},
            )
            node.send(own.line())

    def start_with_rendezvous(self, endpoint: str, nodes: int, announced: Path, assignment: Assignment) -> None:
        """Run ranks here and announce the training to the machines that join."""
        host, port = _host_and_port(endpoint)
        shared = replace(assignment, nodes=nodes, address=f"{host}:{port}", rendezvous_id=self._launch_id)
        self._announcement = Announcement(announced, self._launch_id, shared)
        self._announcement.refresh()
        self.start_here(replace(shared, hosts_rendezvous=True))

    def exit_code(self) -> int | None:
        """The first agent's exit code that is not 0; 0 if all have ended well; None while they run."""
        codes = [node.process.poll() for node in self._nodes]
        return next((code for code in codes if code), None if None in codes else 0)

    def ask_for_stacks(self) -> None:
        """Have every rank write its stacks."""
        for node in self._nodes:
            node.send(f"{STACKS}\n".encode())
        if self._announcement is not None:
            self._announcement.refresh(stacks=True)

    def end(self, grace_s: float) -> list[int]:
        """End every process on every machine. Returns the pids of local processes that survive even SIGKILL."""
        try:
            self._ended.set()
            if self._announcement is not None:
                self._announcement.withdraw()
            for node in self._nodes:
                node.release()
            deadline = time.monotonic() + grace_s + KILL_WAIT_S
            while any(node.process.poll() is None for node in self._nodes) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:  # also when a second interrupt cuts the wait short
            stuck = end_processes(self._launch_id, 0)
        return stuck

    def _add(self, name: str, command: list[str], output: Path) -> Node:
        # Without RANK, in case this process has it: RANK distinguishes ranks from agents.
        environment = {key: value for key, value in os.environ.items() if key != "RANK"}
        node = Node(name, command, output, {**environment, LAUNCH_ID: self._launch_id})
        self._nodes.append(node)
        return node

    def _keep_informed(self) -> None:
        """Runs in a thread, so that signs of life are sent even while the main thread waits."""
        while not self._ended.wait(REFRESH_S):
            for node in list(self._nodes):
                node.send(b"\n")
            if self._announcement is not None and not self._ended.is_set():
                with suppress(OSError):  # the shared folder may be away for a moment
                    self._announcement.refresh()


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots of each host of a DeepSpeed hostfile (`host slots=N`, comments behind #).

    Raises:
        InputError: the file is missing or names no host, or a line is wrong; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(
            f"the launcher's hostfile (RAREC_HOSTFILE) {path} cannot be read: {why}; correct the file or the path"
        ) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([^\s-]\S*)\s+slots=([1-9]\d*)", text)
        if match is None:
            raise InputError(f"{path}, line {number}: {text!r} is not of the form 'host slots=N' with N at least 1")
        if match[1] in hosts:
            raise InputError(f"{path}, line {number}: host {match[1]} is listed twice; add up its slots in one line")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise InputError(f"{path} names no host; add a line 'host slots=N' for each machine")
    return hosts


def _wait_until_ready(node: Node, start: int) -> int:
    """A free port on the node's machine. Raises dg.Failure with the remote shell's output if its agent does not start,
    InputError if the host's name cannot be resolved.
    """
    deadline = time.monotonic() + READY_S
    while True:
        ended = node.process.poll()
        said = node.output.read_bytes()[start:].decode(errors="replace")
        match = re.search(f"{re.escape(READY)}(\\d+)\n", said)
        if match:
            return int(match[1])
        if ended is not None or time.monotonic() > deadline:
            node.process.kill()  # otherwise it would not notice the end of its input
            if UNRESOLVED.search(said):  # a typing error; retrying does not help
                raise InputError(f"Host {node.name} of the launcher's hostfile cannot be resolved: {said.strip()}")
            how = f"no answer in {READY_S:g} s" if ended is None else f"exit code {ended}"
            raise dg.Failure(
                f"Host {node.name} of the launcher's hostfile cannot be used: {how} from its remote shell. Check that "
                f"the shell (RAREC_REMOTE_SHELL) reaches it without a password and that RaRec is installed there under "
                f"the same path. It said:\n{said.strip() or '(nothing)'}"
            )
        time.sleep(0.05)


def _host_and_port(endpoint: str) -> tuple[str, int]:
    """Host and port of the rendezvous; without a port, a free one. InputError if the port cannot be used."""
    match = re.fullmatch(r"([^\s:]+)(?::(\d{1,5}))?", endpoint)
    if match is None:
        raise InputError(
            f"the launcher's rendezvous (RAREC_RENDEZVOUS) is {endpoint!r}; set it to host or host:port, this "
            "machine's name or address as the others reach it"
        )
    if match[2] is None:
        return match[1], free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(match[2])))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {match[2]} of the launcher's rendezvous (RAREC_RENDEZVOUS={endpoint}) cannot be used on this "
                f"machine: {error}; name another, or the host alone to take a free one"
            ) from error
    return match[1], int(match[2])


def _as_file_name(host: str) -> str:
    return re.sub(r"[^\w.-]", "_", host)
