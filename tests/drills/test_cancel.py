"""Cancel and kill -9 against the real thing: webserver, daemon and code server of `make ui`, driven through GraphQL.

What ran before and after is printed as `ps` shows it; see it with `pytest -m slow -s tests/drills`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from drill_data import TINY
from places import ROOT
from waiting import wait_for

from pipelines.run import INTERRUPTED
from rarec.training.worker.process_tree import LAUNCH_ID, end_processes

pytestmark = pytest.mark.slow

FOR_HOURS = {
    "raserec_pretrained": {"epochs": 100_000, "patience": 100_000},
    "raserec_finetuned": {"epochs": 100_000, "patience": 100_000},
    "lora_checkpoint": {"epochs": 100_000, "patience": 100_000},
    "base_language_model": {"epochs": 100_000, "tokens": 1_000_000_000},
}
JOBS = {"raserec_pretrained": "raserec", "raserec_finetuned": "raserec"}
LAUNCH = """mutation($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""
TERMINATE = """mutation($run: String!) {
  terminateRun(runId: $run) { __typename ... on TerminateRunFailure { message } ... on PythonError { message } }
}"""
STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


class Dagster:
    """The servers, and the processes that they and their runs start in one RAREC_HOME."""

    def __init__(self, home: Path, url: str, environment: dict[str, str]):
        self.home, self.url, self.environment = home, url, environment
        self.launch_id = environment[LAUNCH_ID]

    def ask(self, query, **variables):
        answer = requests.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def answers(self):
        try:
            nodes = self.ask("{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}")
        except requests.ConnectionError:
            return False
        return bool(nodes["repositoriesOrError"].get("nodes"))

    def launch(self, asset):
        """Start a run of this one asset; of those that train, long enough to be interrupted; its id."""
        selector = {
            "repositoryLocationName": "rarec",
            "repositoryName": "__repository__",
            "jobName": JOBS.get(asset, "rella"),
            "assetSelection": [{"path": [asset]}],
        }
        parameters = {
            "selector": selector,
            "runConfigData": {"ops": {asset: {"config": FOR_HOURS.get(asset, {"force": True})}}},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "tiny"}]},
        }
        answer = self.ask(LAUNCH, parameters=parameters)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def terminate(self, run):
        answer = self.ask(TERMINATE, run=run)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def status(self, run):
        return self.ask(STATUS, run=run)["runOrError"]["status"]

    def workers(self):
        """Processes of launches in this home: they carry a launch id of their own."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if process.status() == psutil.STATUS_ZOMBIE or environment.get("RAREC_HOME") != str(self.home):
                    continue
                if environment.get(LAUNCH_ID, self.launch_id) != self.launch_id:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def training(self):
        """The ranks, once both have worked for some seconds."""
        ranks = [worker for worker in self.workers() if is_rank(worker, worked_s=3)]
        return ranks if len(ranks) == 2 else None

    def checkpoints(self, asset):
        return sorted(self.home.glob(f"work/{asset}/*/**/checkpoint/*"))

    def show(self, title):
        print(f"\n--- {title}")
        ids = [str(process.pid) for process in psutil.process_iter() if self._ours(process)]
        listing = subprocess.run(
            ["ps", "-o", "pid,ppid,pgid,stat,etime,rss,args", "--cols", "150", "-p", ",".join(ids)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        print(listing.stdout, flush=True)

    def _ours(self, process):
        try:
            return process.environ().get("RAREC_HOME") == str(self.home)
        except psutil.Error:
            return False


def is_rank(process, worked_s):
    """Whether it is a rank of a training, and not what started it, that has used the processor for so long."""
    try:
        command, used = " ".join(process.cmdline()), sum(process.cpu_times()[:2])
    except psutil.Error:  # one of the compiler's, say, which come and go while a rank starts
        return False
    trains = re.search(r"-m rarec\.(raserec|rella)\.", command) and "rarec.training" not in command
    return bool(trains) and used > worked_s


def step_of(worker):
    """The process of the step that started this worker: the first above it that is not of the training."""
    return next(one for one in worker.parents() if "rarec.training" not in " ".join(one.cmdline()))


@pytest.fixture(scope="module")
def dagster(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "datasets").mkdir()
    (home / "datasets" / "tiny.toml").write_text(TINY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAREC", "MLFLOW"))}
    environment |= {"RAREC_HOME": str(home), "RAREC_NPROC": "2", "RAREC_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("DAGSTER_HOME", None)
    # Everything upstream, in one process: this also makes the Dagster home with its dagster.yaml.
    command = [sys.executable, "-m", "pipelines.run", "--dataset", "tiny"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
    environment |= {"DAGSTER_HOME": str(home / "dagster"), LAUNCH_ID: f"drill-{port}"}
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "dev", "-w", "workspace.yaml"]
    with (home / "servers.log").open("wb") as log:
        servers = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", port], cwd=ROOT, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    one = Dagster(home, f"http://127.0.0.1:{port}", environment)
    try:
        wait_for(one.answers, 120, "the webserver answers")
        yield one
    finally:
        servers.send_signal(signal.SIGINT)
        end_processes(one.launch_id, 20)
        for worker in one.workers():
            worker.kill()
        servers.wait()


@pytest.mark.parametrize("asset", FOR_HOURS)
def test_a_run_cancelled_on_the_page_leaves_nothing_and_the_next_one_starts(dagster, asset):
    run = dagster.launch(asset)
    wait_for(dagster.training, 120, f"{asset} trains")
    wait_for(lambda: dagster.checkpoints(asset), 60, "a checkpoint")
    dagster.show(f"{asset} trains")
    dagster.terminate(run)
    wait_for(lambda: dagster.status(run) == "CANCELED", 60, "the run is cancelled")
    dagster.show(f"{asset} cancelled")
    assert dagster.workers() == []
    assert dagster.checkpoints(asset)

    again = dagster.launch(asset)
    wait_for(dagster.training, 60, f"{asset} trains again")
    dagster.terminate(again)
    wait_for(lambda: dagster.status(again) == "CANCELED", 60, "the second run is cancelled")
    assert dagster.workers() == []


def test_predictions_are_cancelled_even_where_ranks_stand_still(dagster):
    """They would end within seconds: so both ranks are stopped, and feel no SIGTERM."""
    run = dagster.launch("ctr_predictions")
    for rank in wait_for(dagster.training, 120, "it scores"):
        rank.suspend()
    dagster.show("ctr_predictions, its ranks stopped")
    dagster.terminate(run)
    wait_for(lambda: dagster.status(run) == "CANCELED", 90, "the run is cancelled")
    dagster.show("ctr_predictions cancelled")
    assert dagster.workers() == []
    again = dagster.launch("ctr_predictions")
    wait_for(lambda: dagster.status(again) == "SUCCESS", 120, "the next run ends well")


def test_a_killed_step_is_tried_again_in_the_same_run(dagster):
    run = dagster.launch("raserec_pretrained")
    (worker, *_) = wait_for(dagster.training, 120, "it trains")
    step = step_of(worker)
    dagster.show(f"before kill -9 of the step, process {step.pid}")
    step.kill()
    wait_for(lambda: not worker.is_running(), 30, "its worker is gone")
    wait_for(dagster.training, 90, "it trains again")
    dagster.show("after kill -9 of the step: tried again")
    assert dagster.status(run) == "STARTED"
    dagster.terminate(run)
    wait_for(lambda: dagster.status(run) == "CANCELED", 60, "the run is cancelled")
    assert dagster.workers() == []


def test_a_killed_run_frees_its_slot(dagster):
    run = dagster.launch("raserec_pretrained")
    (worker, *_) = wait_for(dagster.training, 120, "it trains")
    process = step_of(worker).parent()
    dagster.show(f"before kill -9 of the run, process {process.pid}")
    process.kill()
    wait_for(lambda: dagster.status(run) == "FAILURE", 120, "the run is failed")
    dagster.show("after kill -9 of the run")
    wait_for(lambda: dagster.workers() == [], 60, "its worker is gone")
    again = dagster.launch("raserec_pretrained")
    wait_for(dagster.training, 60, "the next run trains")
    dagster.terminate(again)
    wait_for(lambda: dagster.status(again) == "CANCELED", 60, "the second run is cancelled")
    assert dagster.workers() == []


def test_ctrl_c_of_make_run_is_not_tried_again(dagster):
    config = json.dumps({"raserec_pretrained": FOR_HOURS["raserec_pretrained"]})
    command = [sys.executable, "-m", "pipelines.run", "--dataset", "tiny", "--track", "raserec", "--config", config]
    process = subprocess.Popen(
        command, cwd=ROOT, env=dagster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(dagster.training, 120, "it trains")
    dagster.show("before Ctrl-C")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    print(out[-600:])
    dagster.show("after Ctrl-C")
    assert dagster.workers() == []
    assert process.returncode == 1
    assert err.splitlines()[-1] == INTERRUPTED
    assert "tried again" not in out
