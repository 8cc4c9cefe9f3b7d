"""The agent of one machine: runs that machine's ranks of one training, and leaves none of their processes behind.

`python -m rarec.training.worker.node` reads an `Assignment` as one line of JSON from standard input, and then one order
per line: `STACKS`, or an empty line as a sign of life. It ends everything it started when the input ends, when nothing
has arrived for `LOST_S`, on SIGTERM or SIGINT, and when the ranks end. So a killed launcher or remote shell, or a cut
network, leaves nothing behind. With the argument `ready` it first prints a line with a free port, which shows that the
machine was reached.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from rarec.training.progress import LAUNCHER_PID, LONE_WORKER
from rarec.training.worker.process_tree import LAUNCH_ID, end_processes, signal_workers
from rarec.training.worker.worker_files import leave_ended, memory_kills

READY = "RaRec's node agent is ready; a free port: "
STACKS = "stacks"
POLL_S = 0.1
LOST_S = 60.0  # without a sign of life from the other end


@dataclass(frozen=True)
class Assignment:
    """What an agent runs, and how its ranks meet those on other machines."""

    module: str
    job_file: str  # absolute path, the same on every machine; its folder is the working folder
    processes: int  # on this machine
    environment: dict[str, str] = field(default_factory=dict)
    threads: int = 0  # CPU threads of each; 0 shares out the cores
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    nodes: int = 1
    address: str = ""  # host:port at which several machines meet
    node_rank: int | None = None  # this machine's rank; None leaves it to the rendezvous
    rendezvous_id: str = ""
    hosts_rendezvous: bool = False

    def line(self) -> bytes:
        """The assignment as the agent reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def folder(self) -> Path:
        """The training's working folder."""
        return Path(self.job_file).parent

    def command(self) -> list[str]:
        """The command that starts this machine's ranks."""
        work = [self.module, self.job_file]
        if self.nodes == 1 and self.processes == 1:  # torchrun would add seconds and nothing else
            return [sys.executable, "-m", *work]
        host, _, port = self.address.rpartition(":")
        if self.nodes == 1:
            meeting = ["--standalone", "--local-addr=127.0.0.1"]
        elif self.node_rank is not None:
            meeting = [f"--node-rank={self.node_rank}", f"--master-addr={host}", f"--master-port={port}"]
        else:
            meeting = [
                *("--rdzv-backend=c10d", f"--rdzv-endpoint={self.address}", f"--rdzv-id={self.rendezvous_id}"),
                *(f"--rdzv-conf=is_host={int(self.hosts_rendezvous)}", f"--local-addr={_own_address(host)}"),
            ]
        size = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.processes}"]
        return [sys.executable, "-m", "rarec.training.worker.torchrun_worker", *size, *meeting, "-m", *work]

    def worker_environment(self) -> dict[str, str]:
        """The environment of the ranks: this machine's, the launcher's, and what only this machine knows."""
        environment = {**os.environ, **self.environment}
        environment.pop("RANK", None)  # torchrun sets it; it tells ranks from the processes that start them
        share = max(1, (os.cpu_count() or 1) // self.processes)
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        elif "OMP_NUM_THREADS" not in self.environment:
            environment["OMP_NUM_THREADS"] = str(share)
        # OpenMP's threads spin for milliseconds while they wait, and take the cores from other processes: beside
        # another training, a step took ten times as long. Spinning less than this costs time on an idle machine.
        environment.setdefault("GOMP_SPINCOUNT", "30000")
        interface = _interface(self.address.rpartition(":")[0]) if self.nodes > 1 else "lo"
        if interface and sys.platform == "linux":
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                environment[name] = self.environment.get(name) or os.environ.get(name) or interface
        if self.nodes == 1 and self.processes == 1:
            environment |= LONE_WORKER
        return environment


class Agent:
    """Runs one assignment until its ranks end, or the launcher does."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._launch_id = os.environ.get(LAUNCH_ID) or uuid.uuid4().hex
        self._parent = os.getppid()
        self._heard_at = time.monotonic()
        self._unwanted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self) -> int:
        """Run the ranks; return their exit code, or 128 + the number of the signal that ended them."""
        killed_before = memory_kills()
        environment = {
            **self._assignment.worker_environment(),
            LAUNCHER_PID: str(os.getpid()),
            LAUNCH_ID: self._launch_id,
        }
        ranks = subprocess.Popen(
            self._assignment.command(), env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while ranks.poll() is None and self._wanted():
                self._listen()
            exit_code = ranks.poll()
        finally:
            end_processes(self._launch_id, self._assignment.grace_s)
        if exit_code is None:
            return 128 + signal.SIGTERM
        if exit_code != 0:
            self._leave_reason(exit_code, memory_kills() > killed_before)
        return exit_code if exit_code >= 0 else 128 - exit_code

    def _leave_reason(self, exit_code: int, memory_ran_out: bool) -> None:
        folder = self._assignment.folder
        if self._assignment.nodes == 1 and self._assignment.processes == 1:
            leave_ended(folder, 0, exit_code, memory_ran_out)
        elif not list(folder.glob("error-*.json")):  # torchrun itself failed, so no rank left a reason
            leave_ended(folder, f"node-{socket.gethostname()}", exit_code, memory_ran_out)

    def _stop(self, *_: object) -> None:
        self._unwanted = True

    def _wanted(self) -> bool:
        lost = time.monotonic() - self._heard_at > LOST_S
        return not (self._unwanted or lost or os.getppid() != self._parent)

    def _listen(self) -> None:
        """Wait a moment for orders, and carry them out."""
        if not select.select([0], [], [], POLL_S)[0]:
            return
        received = os.read(0, 1 << 16)
        self._heard_at = time.monotonic()
        self._unwanted |= not received
        if STACKS.encode() in received.split(b"\n"):
            signal_workers(self._launch_id, signal.SIGUSR1)


def free_port() -> int:
    """A TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _own_address(host: str) -> str:
    """The address from which this machine reaches ``host``. Nothing is sent."""
    family, _, _, _, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        address: str = probe.getsockname()[0]
        return address


def _interface(host: str) -> str | None:
    """The network interface that has `_own_address`; None if it is the loopback interface."""
    address = _own_address(host)
    for name, addresses in psutil.net_if_addrs().items():
        if address in {one.address.split("%")[0] for one in addresses}:
            return None if name == "lo" else name
    return None


def main() -> None:
    """Run the agent."""
    if "ready" in sys.argv[1:]:
        print(f"{READY}{free_port()}", flush=True)
    line = b""
    # Byte by byte, as orders may follow at once. Through a slow remote shell, signs of life may come first.
    while not (line.strip() and line.endswith(b"\n")):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit("The launcher ended before it sent an assignment.")
        line += byte
    raise SystemExit(Agent(Assignment(**json.loads(line))).run())


if __name__ == "__main__":
    main()
