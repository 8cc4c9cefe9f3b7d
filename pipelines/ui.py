"""`make ui`: the Dagster and MLflow pages of this installation, side by side until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid

from pipelines.run import prepare_dagster_home
from rarec.errors import InputError
from rarec.training.processes import LAUNCH_ID, end_processes
from resources.home import RarecHome

HOST = "127.0.0.1"
GRACE_S = 30.0  # for runs in progress to end their training workers


def main() -> None:
    """Start both servers on the loopback interface, wait, and end both together."""
    home = RarecHome.from_environment()
    ports = {name: free_port(name, default) for name, default in (("DAGSTER_PORT", 3000), ("MLFLOW_PORT", 5000))}
    prepare_dagster_home(home)
    mlflow_url = f"http://{HOST}:{ports['MLFLOW_PORT']}"
    os.environ.setdefault("MLFLOW_UI_URL", mlflow_url)  # links of runs that are started on the page
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    commands = [
        [
            *("dagster", "dev", "-w", "workspace.yaml", "--log-level", "warning"),
            *("-h", HOST, "-p", str(ports["DAGSTER_PORT"])),
        ]
    ]
    external = home.tracking_uri.startswith(("http://", "https://"))
    if not external:
        home.mlflow.mkdir(parents=True, exist_ok=True)
        commands.append(
            [
                *("mlflow", "ui", "--backend-store-uri", home.tracking_uri, "--workers", "1"),
                *("--default-artifact-root", (home.mlflow / "artifacts").as_uri()),
                *("--host", HOST, "--port", str(ports["MLFLOW_PORT"]), "--uvicorn-opts", "--log-level warning"),
            ]
        )
    print(f"Dagster: http://{HOST}:{ports['DAGSTER_PORT']}   MLflow: {home.tracking_uri if external else mlflow_url}")
    print("They open within half a minute; Ctrl-C ends both.", flush=True)
    run_together(commands)


def run_together(commands: list[list[str]]) -> None:
    """Run Python modules (name and arguments) until one ends or this process is told to; then end all they started."""
    launch_id = uuid.uuid4().hex
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us in the background, deaf to Ctrl-C
        signal.signal(number, signal.default_int_handler)
    environment = {**os.environ, LAUNCH_ID: launch_id}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # Sessions of their own: Ctrl-C reaches this process alone, which then ends them in order.
        processes.extend(
            subprocess.Popen([sys.executable, "-W", "ignore", "-m", *command], env=environment, start_new_session=True)
            for command in commands
        )
        while all(process.poll() is None for process in processes):
            time.sleep(0.2)
        ended = next(i for i, process in enumerate(processes) if process.poll() is not None)
        raise SystemExit(f"error: {' '.join(commands[ended][:2])} ended with exit code {processes[ended].poll()}")
    except KeyboardInterrupt:
        print("ending both", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in processes:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE_S
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        end_processes(launch_id, GRACE_S)


def free_port(variable: str, default: int) -> int:
    """The port that the environment variable names, or the default; InputError if it is no port or taken."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise InputError(f"{variable} is {text!r}; set it to a port number")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            raise InputError(f"port {text} is in use; choose another: make ui {variable}=...") from error
    return int(text)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
