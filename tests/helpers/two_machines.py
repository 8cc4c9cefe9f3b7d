"""Two machines for tests: network namespaces joined by a cable (veth), with a stand-in for ssh between them."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class TwoMachines:
    """Names of the namespaces, their addresses, and the remote shell that reaches them."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    shell: str

    def inside(self, number: int, command: list[str]) -> list[str]:
        """The command line that runs ``command`` on one of the machines."""
        return ["ip", "netns", "exec", self.names[number], *command]

    def processes(self) -> list[int]:
        """What runs on either machine."""
        return [int(pid) for name in self.names for pid in _ip("netns", "pids", name).split()]


def why_not() -> str | None:
    """Why machines cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    name = f"rarec-probe-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"network namespaces are not permitted: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


@contextlib.contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """Make the machines; whatever happens, they are removed with all that runs on them."""
    tag = str(os.getpid())
    names = (f"rarec-a-{tag}", f"rarec-b-{tag}")
    addresses = ("10.213.7.1", "10.213.7.2")
    shell = [
        sys.executable,
        str(Path(__file__).with_name("remote_shell.py")),
        json.dumps(dict(zip(addresses, names, strict=True))),
    ]
    machines = TwoMachines(names, addresses, shlex.join(shell))
    _remove_abandoned()
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", f"va{tag}", "netns", names[0], "type", "veth", "peer", "name", f"vb{tag}", "netns", names[1])
        for name, device, address in zip(names, (f"va{tag}", f"vb{tag}"), addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield machines
    finally:
        for name in names:
            _remove(name)


def _remove(name: str) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        for pid in _ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        _ip("netns", "del", name)


def _remove_abandoned() -> None:
    """Remove what tests left that were killed."""
    for name in _ip("netns", "list").splitlines():
        made = re.match(r"rarec-[ab]-(\d+)", name)
        if made and not psutil.pid_exists(int(made[1])):
            _remove(made[0])


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
