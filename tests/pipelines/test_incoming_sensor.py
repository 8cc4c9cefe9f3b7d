"""The sensor of new files: what it asks for and when, and what becomes of that while the store is away."""

import time
from types import SimpleNamespace

import dagster as dg
import pandas as pd
import pytest

from pipelines import sensors
from pipelines.sensors import incoming_sensor
from rarec.data.spec import builtin_specs
from resources.incoming import ingest
from resources.workspace import Workspace

DATASETS = ["demo", "ml-100k"]
SETTLE_S = 60
SPEC = builtin_specs()["ml-100k"]


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(DATASETS))
def taken_in():
    pass


class Watch:
    """The sensor over a shaky store, ticking by a clock of its own."""

    def __init__(self, root, instance, monkeypatch):
        self.workspace = Workspace(
            data="", datasets=str(root / "none"), cache="", work="",
            incoming=f"shaky://{root}/incoming", ledgers=str(root / "ledgers"), settle_s=SETTLE_S,
        )  # fmt: skip
        self.arrivals = {name: root / "incoming" / name / "incoming" for name in DATASETS}
        for folder in self.arrivals.values():
            folder.mkdir(parents=True)
        job = dg.define_asset_job("ingest", [taken_in])
        self.sensor = incoming_sensor(job, DATASETS, 30)
        self.defs = dg.Definitions(
            assets=[taken_in], jobs=[job], sensors=[self.sensor], resources={"workspace": self.workspace}
        )
        self.instance, self.cursor, self.now = instance, None, time.time()
        monkeypatch.setattr(sensors, "time", SimpleNamespace(time=lambda: self.now))

    def drop(self, name, count=1, dataset="ml-100k"):
        rows = [(user, 50, 4, 893_000_000) for user in range(1, count + 1)]
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
        table.to_csv(self.arrivals[dataset] / name, index=False)

    def tick(self, later_s=30):
        """What the sensor says after so much more time."""
        self.now += later_s
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.defs, resources={"workspace": self.workspace}
        )
        data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor
        return data

    def run(self, request):
        """The run that was asked for, which does nothing."""
        job = self.defs.resolve_job_def("ingest")
        job.execute_in_process(instance=self.instance, partition_key=request.partition_key, tags=request.tags)

    def take_in(self, request):
        """What the run's asset does; returns what was judged."""
        name = request.partition_key
        source, ledger = self.workspace.incoming_files(name), self.workspace.ledger(name)
        settled, _ = ledger.look(source.listing(), self.now, SETTLE_S)
        return ingest(source, ledger, SPEC, settled).judged

    def users(self):
        ledger = self.workspace.ledger("ml-100k")
        return sorted(int(user) for user in ledger.read(ledger.state()).rows["user_id"])


@pytest.fixture
def watch(tmp_path, monkeypatch, shaky):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Watch(tmp_path, instance, monkeypatch)


def only_request(data):
    (request,) = data.run_requests
    return request


def test_a_file_is_asked_for_once_it_has_stayed_as_it_is(watch):
    assert watch.tick().skip_message == "no new files"
    for count in range(1, 6):  # grows once a tick
        watch.drop("a.csv", count)
        assert watch.tick().skip_message == "ml-100k: 1 files have not settled"
    assert watch.tick().skip_message == "ml-100k: 1 files have not settled"
    request = only_request(watch.tick())
    assert request.partition_key == "ml-100k"
    assert request.tags["rarec/files"] == "a.csv"
    assert len(watch.take_in(request)) == 1
    assert watch.tick().skip_message == "no new files"
    assert watch.users() == [1, 2, 3, 4, 5]


def test_a_store_away_for_a_minute_costs_a_minute(watch, shaky):
    watch.drop("a.csv", 3)
    watch.tick()
    watch.cursor = "as it was"
    shaky.away = "Connection refused"
    watch.drop("b.csv", 3, dataset="demo")
    for _ in range(2):
        data = watch.tick()
        assert data.run_requests == []
        said = "cannot be listed (ConnectionError: could not connect to the endpoint: Connection refused)"
        assert data.skip_message == f"demo: {said}; ml-100k: {said}"
        assert data.cursor == "as it was"
    shaky.away = ""
    data = watch.tick()  # a.csv has stayed as it is all the while; b.csv is seen for the first time
    assert len(watch.take_in(only_request(data))) == 1
    assert watch.tick().skip_message == "demo: 1 files have not settled"
    assert only_request(watch.tick()).partition_key == "demo"
    assert watch.users() == [1, 2, 3]


def test_one_data_set_that_cannot_be_looked_at_keeps_none_of_the_others_waiting(watch, monkeypatch):
    watch.drop("a.csv")
    (watch.arrivals["demo"] / "x.csv").write_text("x")
    reach = Workspace.ledger

    def ledger(workspace, name):
        if name == "demo":
            raise OSError("[Errno 5] Input/output error")
        return reach(workspace, name)

    monkeypatch.setattr(Workspace, "ledger", ledger)
    assert watch.tick().skip_message.startswith("demo: cannot be listed (OSError: [Errno 5] Input/output error); ml-")
    assert only_request(watch.tick(SETTLE_S)).partition_key == "ml-100k"


def test_the_store_goes_away_between_the_look_and_the_run(watch, shaky):
    for name in ("a.csv", "b.csv", "c.csv"):
        watch.drop(name, 1 + "abc".index(name[0]))
    watch.tick()
    request = only_request(watch.tick(SETTLE_S))
    shaky.opens_left = 1
    with pytest.raises(ConnectionError):
        watch.take_in(request)
    assert watch.users() == [1]
    assert "cannot be listed" in watch.tick().skip_message
    shaky.away, shaky.opens_left = "", None
    request = only_request(watch.tick())
    assert request.tags["rarec/files"] == "b.csv, c.csv"
    watch.take_in(request)
    assert watch.users() == [1, 1, 1, 2, 2, 3]
    assert shaky.opened == ("a.csv", "b.csv", "c.csv")
    assert watch.tick().skip_message == "no new files"


def test_a_run_that_took_nothing_in_is_asked_for_again_in_a_while(watch):
    watch.drop("a.csv")
    watch.tick()
    first = only_request(watch.tick(SETTLE_S))
    watch.run(first)
    assert "over the same files ended as SUCCESS" in watch.tick(0).skip_message
    again = only_request(watch.tick(sensors.RETRY_S + 1))
    assert again.tags == first.tags
    assert again.run_key != first.run_key  # Dagster ignores one that it has seen


def test_files_that_stay_unjudged_are_asked_for_ever_more_rarely(watch):
    watch.drop("a.csv")
    watch.tick()
    request, waits = only_request(watch.tick(SETTLE_S)), []
    for _ in range(10):
        watch.now = time.time()
        watch.run(request)
        waited, step = 0, 60
        while not (data := watch.tick(step)).run_requests:
            waited += step
        waits.append(waited + step)
        request = only_request(data)
    hours = 6 * 3600
    assert waits == pytest.approx([120, 240, 480, 960, 1920, 3840, 7680, 15360, hours, hours], abs=60)
    watch.run(request)
    watch.drop("b.csv")  # keeps no other file waiting
    watch.tick(0)
    assert only_request(watch.tick(SETTLE_S)).tags["rarec/files"] == "a.csv, b.csv"


@pytest.mark.slow
def test_a_tick_over_ten_thousand_judged_files_opens_none(watch, shaky):
    for number in range(10_000):
        (watch.arrivals["ml-100k"] / f"{number:05}.csv").write_text(
            f"user_id,item_id,rating,timestamp\n{number % 943 + 1},50,4,{890_000_000 + number}\n"
        )
    watch.tick()
    request = only_request(watch.tick(SETTLE_S))
    assert request.tags["rarec/reason"] == "10000 new files"
    assert shaky.opened == ()
    assert len(watch.take_in(request)) == 10_000
    assert len(shaky.opened) == 10_000
    began = time.process_time()
    assert watch.tick().skip_message == "no new files"
    assert time.process_time() - began < 2  # about 0.2 s
    watch.drop("new.csv")
    watch.tick()
    assert only_request(watch.tick(SETTLE_S)).tags["rarec/files"] == "new.csv"
    assert len(shaky.opened) == 10_000
