"""Finding and ending the processes of one launch on this machine, even if their parents are gone."""

import os
import signal
import time

import psutil

LAUNCH_ID = "RAREC_LAUNCH_ID"  # environment variable that marks every process of one launch
KILL_WAIT_S = 10.0  # after SIGKILL; a process stuck in the kernel cannot be ended


def end_processes(launch_id: str, grace_s: float) -> list[int]:
    """End every process of a launch: SIGTERM, wait `grace_s`, SIGKILL. Return the pids that are still there.

    Processes are found by the launch id in their environment, which they keep when their parent dies, and as children
    of such processes. Process groups would not do: torchrun gives each worker its own. The calling process is spared.
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
    finally:  # even if a second interrupt cuts the wait short
        deadline = time.monotonic() + KILL_WAIT_S
        while (left := alive()) and time.monotonic() < deadline:
            send(signal.SIGKILL, left)
            time.sleep(0.1)
    return sorted(process.pid for process in left)


def signal_workers(launch_id: str, number: signal.Signals) -> None:
    """Send a signal to this machine's ranks only, not to their parents or children."""
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
            if process.ppid() not in marked:  # children of a rank inherit its environment
                process.send_signal(number)
        except psutil.Error:
            continue


def _processes_of(launch_id: str) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(LAUNCH_ID) == launch_id:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:  # it is gone, or belongs to another user
            continue
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
