"""`make ui`: the Dagster and MLflow pages of this installation, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping

import requests

from pipelines.dagster_home import prepare_dagster_home
from rarec.errors import InputError
from rarec.training.worker.process_tree import LAUNCH_ID, end_processes
from resources.settings import LOOPBACK, Installation

# How long Dagster's page, daemon and code server wait for each other. Beside a training, loading the code takes long.
DAGSTER_TIMEOUT_S = 300
GRACE_S = 30.0  # for runs in progress to stop their training workers


def main() -> None:
    """Start both servers on the loopback interface, and stop both together."""
    installation = Installation.from_environment()
    for name, port in (("DAGSTER_PORT", installation.dagster_port), ("MLFLOW_PORT", installation.mlflow_port)):
        require_free(name, port)
    prepare_dagster_home(installation)
    os.environ.setdefault("DAGSTER_GRPC_TIMEOUT_SECONDS", str(DAGSTER_TIMEOUT_S))
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Hides notices that MLflow's server and its libraries address to their developers.
    os.environ |= {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore:starlette"}
    pages = {f"Dagster at {installation.dagster_ui}": f"http://{LOOPBACK}:{installation.dagster_port}"}
    commands = [
        [
            *("dagster", "dev", "-w", "workspace.yaml", "--log-level", "warning"),
            *("-h", LOOPBACK, "-p", str(installation.dagster_port)),
        ]
    ]
    if installation.tracking_uri.startswith(("http://", "https://")):
        print(f"MLflow at {installation.mlflow_ui} is a server of its own.")
    else:
        pages[f"MLflow at {installation.mlflow_ui}"] = f"http://{LOOPBACK}:{installation.mlflow_port}"
        installation.mlflow.mkdir(parents=True, exist_ok=True)
        commands.append(
            [
                *("mlflow", "ui", "--backend-store-uri", installation.tracking_uri, "--workers", "1"),
                *("--registry-store-uri", installation.tracking_uri),
                *("--default-artifact-root", (installation.mlflow / "artifacts").as_uri()),
                *("--host", LOOPBACK, "--port", str(installation.mlflow_port), "--uvicorn-opts", "--log-level warning"),
            ]
        )
    print(f"Starting {' and '.join(pages)}. Ctrl-C stops what was started here.", flush=True)
    run_together(commands, pages)


def run_together(commands: list[list[str]], pages: Mapping[str, str]) -> None:
    """Run Python modules (name and arguments) until one exits or this process is stopped; then stop all of them, with
    every process they started.

    Args:
        commands: The modules.
        pages: What is told when an address answers, and the address.
    """
    launch_id = uuid.uuid4().hex
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts us in the background makes us ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    environment = {**os.environ, LAUNCH_ID: launch_id}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # Each gets its own session, so that Ctrl-C reaches only this process, which then stops them in order.
        processes.extend(
            subprocess.Popen([sys.executable, "-W", "ignore", "-m", *command], env=environment, start_new_session=True)
            for command in commands
        )
        started, waited_for = time.monotonic(), dict(pages)
        while all(process.poll() is None for process in processes):
            time.sleep(0.2)
            for page in [page for page, address in waited_for.items() if _answers(address)]:
                del waited_for[page]
                print(f"{page} is ready after {time.monotonic() - started:.0f} s.", flush=True)
        ended = next(i for i, process in enumerate(processes) if process.poll() is not None)
        raise SystemExit(f"error: {' '.join(commands[ended][:2])} exited with code {processes[ended].poll()}")
    except KeyboardInterrupt:
        print("stopping both", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in processes:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE_S
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        end_processes(launch_id, GRACE_S)


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=1).ok
    except requests.RequestException:
        return False


def require_free(variable: str, port: int) -> None:
    """Raise InputError if another process uses the port that this environment variable sets."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(f"port {port} is in use; choose another: make ui {variable}=...") from error


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
