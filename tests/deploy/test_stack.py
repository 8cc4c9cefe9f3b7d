"""What docker/compose.yaml describes, started from its own commands, does its work and survives its faults."""

import json
import time

import psutil
import pytest
import requests
from declarations import RASEREC, SYNTHETIC, declared
from deploy_stack import SETTINGS, Stack
from waiting import wait_for

pytestmark = pytest.mark.deploy

# A data set of the user's own, small enough for a run in a minute or two.
QUICK = declared(SYNTHETIC, RASEREC).format(name="quick")
REPOSITORY = {"repositoryLocationName": "rarec", "repositoryName": "__repository__"}
SCHEDULE = "rarec_raserec_weekly"
RUNS = """query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
    runId status rootRunId tags { key value } stepStats { stepKey status } } } } }"""
LAUNCH = """mutation($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
# Of stage 1 alone. SLOW is trained anew, and long enough to be met at work.
QUICKLY = {"ops": {"raserec_pretrained": {"config": {"force": True}}}}
SLOW = {"ops": {"raserec_pretrained": {"config": {"force": True, "epochs": 300, "patience": 300}}}}


@pytest.fixture(scope="module")
def stack():
    stack = Stack(
        {
            "RAREC_ARTIFACTS": "s3://artifacts/rarec",
            "MLFLOW_ARTIFACTS": "s3://mlflow/runs",
            "RAREC_SCHEDULED": "quick",
            "RAREC_SCHEDULE": "* * * * *",
            "RAREC_THREADS": "1",
        }
    )
    (stack.home / "datasets").mkdir()
    (stack.home / "datasets" / "quick.toml").write_text(QUICK)
    try:
        stack.initialise_postgres()
        stack.start_store(("artifacts", "mlflow"))
        stack.start("mlflow", "code")
        stack.start("webserver", "webserver-readonly", "daemon")
        yield stack
    finally:
        stack.close()


def runs(stack, **matching):
    found = stack.graphql(RUNS, filter=matching)["runsOrError"]["results"]
    return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]


def finished(stack, run_id, seconds=900):
    def status():
        (run,) = runs(stack, runIds=[run_id])
        return run["status"] if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

    return wait_for(status, seconds, f"run {run_id} ends", pause=0.5)


def launch(stack, config, server="webserver"):
    tags = [{"key": "dagster/partition", "value": "quick"}]
    selector = {**REPOSITORY, "jobName": "raserec", "assetSelection": [{"path": ["raserec_pretrained"]}]}
    parameters = {"selector": selector, "runConfigData": config, "executionMetadata": {"tags": tags}}
    answer = stack.graphql(LAUNCH, server, parameters=parameters)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


def training(stack, run_id):
    """Wait until stage 1 of the run is at work."""

    def at_work():
        (run,) = runs(stack, runIds=[run_id])
        assert run["status"] != "FAILURE"
        return {"stepKey": "raserec_pretrained", "status": "IN_PROGRESS"} in run["stepStats"]

    wait_for(at_work, 180, "training", pause=0.5)
    time.sleep(5)


def test_a_scheduled_run_is_launched_by_the_daemon_and_ends_well(stack):
    selector = {**REPOSITORY, "scheduleName": SCHEDULE}
    states = """query($selector: ScheduleSelector!) { scheduleOrError(scheduleSelector: $selector) {
        ... on Schedule { scheduleState { status } } } }"""
    change = "mutation($selector: ScheduleSelector!) { %sSchedule(scheduleSelector: $selector) { __typename } }"

    def status():
        return stack.graphql(states, selector=selector)["scheduleOrError"]["scheduleState"]["status"]

    assert status() == "STOPPED", "off by default"
    stack.graphql(change % "start", selector=selector)
    assert status() == "RUNNING"
    scheduled = {"tags": [{"key": "dagster/schedule_name", "value": SCHEDULE}]}
    (run,) = wait_for(lambda: runs(stack, **scheduled), 100, "the daemon launches a run", pause=0.5)
    time.sleep(5)  # a daemon still at work on the tick would write over what it has not seen
    stack.graphql(change % "reset", selector=selector)
    assert status() == "STOPPED"
    assert run["tags"]["dagster/partition"] == "quick"
    assert finished(stack, run["runId"]) == "SUCCESS"
    assert len(runs(stack, **scheduled)) == 1

    listed = requests.get(f"{stack.settings['AWS_ENDPOINT_URL']}/artifacts", timeout=10).text
    assert "rarec/raserec_finetuned/quick/" in listed
    assert not (stack.home / "artifacts").exists()
    search = {"experiment_ids": ["1"], "filter": f"tags.`dagster.run_id` = '{run['runId']}'"}
    found = requests.post(f"{stack.url('mlflow')}/api/2.0/mlflow/runs/search", json=search, timeout=30).json()["runs"]
    assert {one["info"]["status"] for one in found} == {"FINISHED"}
    assert len(found) >= 5
    assert "<Key>runs/" in requests.get(f"{stack.settings['AWS_ENDPOINT_URL']}/mlflow", timeout=10).text


def test_the_read_only_webserver_looks_and_starts_nothing(stack):
    assert runs(stack) != []
    allowed = "query { permissions { permission value } }"
    values = {
        server: {one["permission"]: one["value"] for one in stack.graphql(allowed, server)["permissions"]}
        for server in ("webserver", "webserver-readonly")
    }
    assert values["webserver"]["launch_pipeline_execution"]
    assert not any(values["webserver-readonly"].values())
    with pytest.raises(AssertionError, match="UnauthorizedError"):
        launch(stack, QUICKLY, "webserver-readonly")


def test_a_run_outlives_a_restart_of_postgres(stack):
    run_id = launch(stack, SLOW)
    training(stack, run_id)
    stack.stop_postgres()
    time.sleep(15)
    stack.start_postgres()
    assert finished(stack, run_id) == "SUCCESS"
    assert finished(stack, launch(stack, QUICKLY)) == "SUCCESS"


def test_a_run_whose_container_is_lost_is_found_and_tried_again(stack):
    run_id = launch(stack, SLOW)
    training(stack, run_id)
    stack.kill("code")
    stack.start("code")
    assert finished(stack, run_id, 120) == "FAILURE"
    retried = {"tags": [{"key": "dagster/root_run_id", "value": run_id}]}
    again = wait_for(lambda: runs(stack, **retried), 60, "another try", pause=0.5)
    assert again[0]["tags"]["dagster/retry_number"] == "1"
    assert finished(stack, again[0]["runId"]) == "SUCCESS"


def test_backup_and_upgrade_as_the_documents_say(stack):
    dump = stack.folder / "dagster.dump"
    with dump.open("wb") as file:
        stack.postgres_tool("pg_dump", "-Fc", "dagster", stdout=file)
    stack.postgres_tool("createdb", "restored")
    with dump.open("rb") as file:
        stack.postgres_tool("pg_restore", "--clean", "--if-exists", "-d", "restored", stdin=file)
    counted = [
        stack.postgres_tool("psql", "-At", "-d", name, "-c", "SELECT count(*) FROM runs", capture_output=True).stdout
        for name in ("dagster", "restored")
    ]
    assert counted[0] == counted[1] != b"0\n"
    stack.run_in("daemon", "dagster", "instance", "migrate")
    stack.run_in("mlflow", "sh", "-c", 'mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"')


def test_dagster_keeps_what_steps_print_and_pickles_nothing(stack):
    beside = {path.name for path in (stack.folder / "instance").iterdir()} - {"dagster.yaml", "workspace.yaml"}
    assert beside <= {".logs_queue", "logs"}
    kept = {path.suffix for path in (stack.folder / "dagster").rglob("*") if path.is_file()}
    assert kept == {".out", ".err", ".complete"}


def test_passwords_stand_in_no_command_and_no_log(stack):
    secrets = [*SETTINGS.values(), "secret"]
    commands = json.dumps([process.info["cmdline"] for process in psutil.process_iter(["cmdline"])])
    for name in ("mlflow", "code", "webserver", "webserver-readonly", "daemon"):
        assert not [one for one in secrets if one in stack.log(name)]
    assert not [one for one in SETTINGS.values() if one in commands]
