"""Failed runs are told, whatever becomes of the telling; drift reports are followed, the right ones and once."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from pipelines import sensors
from pipelines.sensors import follow_drift, notify_failure, notify_warning
from resources.mlflow.registry import ModelRegistry, Version
from resources.mlflow.tracking import MlflowTracking
from resources.settings import Installation


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo"]))
def broken():
    raise dg.Failure("the row 7 of x.csv has no item", allow_retries=False)


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo"]))
def unforeseen():
    try:
        raise KeyError("item")
    except KeyError as error:
        raise ValueError("days must be above 0") from error


@dg.asset(
    partitions_def=dg.StaticPartitionsDefinition(["demo"]), check_specs=[dg.AssetCheckSpec("refused", asset="doubtful")]
)
def doubtful():
    yield dg.MaterializeResult(
        check_results=[
            dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, metadata={"files": "x.csv"})
        ]
    )


@dg.asset
def of_others():
    raise dg.Failure("not ours", allow_retries=False)


class Told:
    """Both sensors on an instance, after their first ticks, and what they post."""

    def __init__(self, instance, folder, address):
        self.instance = instance
        variables = {"RAREC_HOME": str(folder), "RAREC_WEBHOOK": address, "DAGSTER_PORT": "3333"}
        self.home = Installation.from_environment(variables)
        assert "secret" not in repr(self.home)
        self.sensors = {sensor.name: sensor for sensor in (notify_failure(self.home), notify_warning(self.home))}
        assets = [broken, unforeseen, doubtful]
        jobs = [dg.define_asset_job(asset.key.to_user_string() + "_job", [asset]) for asset in assets]
        self.defs = dg.Definitions(assets=assets, jobs=jobs, sensors=list(self.sensors.values()))
        self.cursors = {}
        self.tick()

    def run(self, job, partition="demo", defs=None):
        """As `make run` does it: in this process, which belongs to no code location."""
        job = (defs or self.defs).resolve_job_def(job)
        return job.execute_in_process(instance=self.instance, partition_key=partition, raise_on_error=False)

    def tick(self):
        """The faults of the sensors themselves, which Dagster would show on their pages."""
        faults = []
        for name, sensor in self.sensors.items():
            context = dg.build_sensor_context(
                self.instance, self.cursors.get(name), repository_def=self.defs.get_repository_def()
            )
            ticked = sensor.evaluate_tick(context)
            self.cursors[name] = ticked.cursor
            faults += [one.error for one in ticked.dagster_run_reactions if one.error]
        return faults


@pytest.fixture
def posted():
    """What arrives at a webhook, and its address."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield got, f"http://127.0.0.1:{server.server_port}/secret"
    server.shutdown()


def test_a_webhook_gets_what_failed_and_where_once(tmp_path, posted):
    got, address = posted
    with dg.DagsterInstance.ephemeral() as instance:
        told = Told(instance, tmp_path, address)
        run_id = told.run("broken_job").run_id
        told.tick()
        told.tick()
    assert got == [
        {
            "run": run_id,
            "job": "broken_job",
            "data_set": "demo",
            "steps": ["broken"],
            "error": "the row 7 of x.csv has no item",
            "url": f"http://127.0.0.1:3333/runs/{run_id}",
        }
    ]


def test_of_an_unforeseen_error_the_cause_is_told(tmp_path, posted):
    got, address = posted
    with dg.DagsterInstance.ephemeral() as instance:
        told = Told(instance, tmp_path, address)
        told.run("unforeseen_job")
        told.tick()
    assert [one["error"] for one in got] == ["KeyError: 'item'"]


def test_a_run_that_succeeded_with_a_failed_check_is_told(tmp_path, posted):
    got, address = posted
    with dg.DagsterInstance.ephemeral() as instance:
        told = Told(instance, tmp_path, address)
        assert told.run("doubtful_job").success
        told.tick()
    (payload,) = got
    assert payload["steps"] == ["doubtful"]
    assert payload["error"] == "check refused of doubtful failed: files: x.csv"


def test_runs_of_other_code_locations_are_theirs_to_tell(tmp_path, posted):
    got, address = posted
    others = dg.Definitions(assets=[of_others], jobs=[dg.define_asset_job("theirs", [of_others])])
    with dg.DagsterInstance.ephemeral() as instance:
        told = Told(instance, tmp_path, address)
        assert not told.run("theirs", partition=None, defs=others).success
        from_the_graph = others.resolve_job_def("__ASSET_JOB")
        from_the_graph.execute_in_process(instance=instance, asset_selection=[of_others.key], raise_on_error=False)
        told.tick()
    assert got == []


def test_a_webhook_that_is_away_fails_nothing_and_its_address_stays_secret(tmp_path, capsys):
    with dg.DagsterInstance.ephemeral() as instance:
        told = Told(instance, tmp_path, "http://127.0.0.1:9/secret")
        run_id = told.run("broken_job").run_id
        capsys.readouterr()
        assert told.tick() == []
        assert told.tick() == []
    log = capsys.readouterr().err
    assert [line.partition(" - ERROR - ")[2] for line in log.splitlines()] == [  # once: the sensor goes on behind it
        f"broken_job demo failed: the row 7 of x.csv has no item (http://127.0.0.1:3333/runs/{run_id})",
        "The run could not be posted to RAREC_WEBHOOK: ConnectionError",
    ]


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo", "own"]))
def drift_report():
    pass


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo", "own"]))
def rella_drift_report():
    pass


class Followed:
    """The sensor over reports that are put there; ``champions``: model -> the version in use."""

    def __init__(self, instance, monkeypatch):
        self.instance, self.cursor = instance, None
        self.champions = {"rarec-own-raserec": 3, "rarec-own-rella": 1, "rarec-demo-raserec": 1}
        self.away = False
        jobs = [dg.define_asset_job(name, [drift_report]) for name in ("refresh", "finetune", "pretrain", "tune")]
        self.sensor = follow_drift(jobs, ["demo", "own"])
        self.tracking = MlflowTracking(tracking_uri="http://mlflow", ui_url="", artifact_root="")
        self.defs = dg.Definitions(
            assets=[drift_report, rella_drift_report],
            jobs=jobs,
            sensors=[self.sensor],
            resources={"tracking": self.tracking},
        )
        monkeypatch.setattr(MlflowTracking, "check", lambda _: "0")
        monkeypatch.setattr(MlflowTracking, "_client", lambda _: None)
        monkeypatch.setattr(ModelRegistry, "champion", lambda registry: self.champion(registry))

    def champion(self, registry):
        if self.away:
            raise ConnectionError("connection refused")
        number = self.champions.get(registry.name)
        return None if number is None else Version(registry.name, number, {}, "trained")

    def report(self, verdict, champion, dataset="own", asset="drift_report"):
        number = len(self.instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records)
        metadata = {"verdict": verdict, "reason": "why", "champion": champion, "fingerprint": f"{asset} {number}"}
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=dataset, metadata=metadata if verdict else {})
        )

    def tick(self):
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.defs, resources={"tracking": self.tracking}
        )
        data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor
        asked = [(request.partition_key, request.job_name) for request in data.run_requests]
        return asked, data.skip_message or ""


@pytest.fixture
def followed(monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Followed(instance, monkeypatch)


def test_reports_of_before_the_sensor_was_turned_on_count_by_the_newest_alone(followed, monkeypatch):
    monkeypatch.setattr(sensors, "MOST_REPORTS", 2)
    followed.report("refresh", 1, dataset="demo")
    for _ in range(3):
        followed.report("pretrain", 3)
    followed.report("tune", 1, asset="rella_drift_report")
    followed.report("wait", 3)
    assert followed.tick()[0] == [("demo", "refresh"), ("own", "tune")]
    assert followed.tick()[0] == []
    followed.report("finetune", 3)
    assert followed.tick()[0] == [("own", "finetune")]


def test_the_first_report_of_all_is_followed(followed):
    assert followed.tick()[0] == []
    followed.report("refresh", 3)
    assert followed.tick()[0] == [("own", "refresh")]


def test_a_materialisation_reported_by_hand_is_no_report(followed):
    followed.report("refresh", 3)
    followed.report("", 3)
    assert followed.tick()[0] == [("own", "refresh")]
    followed.report("", 3)
    assert followed.tick()[0] == []
    followed.report("finetune", 3)
    followed.report("", 3)
    assert followed.tick()[0] == [("own", "finetune")]


def test_a_report_on_a_champion_of_before_asks_for_nothing(followed):
    followed.report("refresh", 2)
    assert followed.tick() == ([], "own: the newest drift_report measured version 2, which is no longer in use")
    followed.report("tune", 1, dataset="demo", asset="rella_drift_report")  # of a model that has no champion
    followed.report("refresh", 3)
    assert followed.tick() == ([("own", "refresh")], "")
    assert followed.tick()[0] == []


def test_while_mlflow_is_away_reports_wait(followed):
    followed.report("wait", 3)
    assert followed.tick()[0] == []
    before = followed.cursor
    followed.report("refresh", 3)
    followed.away = True
    for _ in range(2):
        reason = "the champions cannot be looked up; the next tick retries: connection refused"
        assert followed.tick() == ([], reason)
        assert followed.cursor == before
    followed.away = False
    assert followed.tick()[0] == [("own", "refresh")]
