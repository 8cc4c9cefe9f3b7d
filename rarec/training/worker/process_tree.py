"""The processes of one launch on this machine: finding them, whoever their parents are, and ending them."""

import os
import signal
import time

import psutil

LAUNCH_ID = "RAREC_LAUNCH_ID"  # marks every process of one launch, also those whose parent is gone
KILL_WAIT_S = 10.0  # after SIGKILL; a process stuck in the kernel cannot be ended from here


def end_processes(launch_id: str, grace_s: float) -> list[int]:
    """End every process of a launch: SIGTERM, `grace_s` to leave, SIGKILL. Returns the pids of those still there.

    Process groups do not help: torchrun gives each worker its own. Processes are found by the launch id in their
    environment, which they keep when their parent dies, and as children of those. The calling process is spared.
    """
    known: set[psutil.Process] = set()

    def alive() -> set[psutil.Process]:
        known.update(_processes_of(launch_id))
        return {process for process in known if process.pid != os.getpid() and _is_alive(process)}

    def send(number: signal.Signals, processes: set[psutil.Process]) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    try:
        send(signal.SIGTERM, alive())
        deadline = time.monotonic() + grace_s
        while alive() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:  # also when a second interrupt cuts the wait short
        deadline = time.monotonic() + KILL_WAIT_S
        while (left := alive()) and time.monotonic() < deadline:
            send(signal.SIGKILL, left)
            time.sleep(0.1)
    return sorted(process.pid for process in left)


def signal_workers(launch_id: str, number: signal.Signals) -> None:
    """Send a signal to this machine's ranks alone: not to what started them nor to what they started."""
    marked = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get(LAUNCH_ID) == launch_id and "RANK" in environment:
                marked[process.pid] = process
        except psutil.Error:
            continue
    for process in marked.values():
        try:
            if process.ppid() not in marked:  # what a rank starts inherits its environment
                process.send_signal(number)
        except psutil.Error:
            continue


def _processes_of(launch_id: str) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(LAUNCH_ID) == launch_id:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:  # gone meanwhile, or of another user
            continue
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
