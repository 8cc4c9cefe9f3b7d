"""A day of the demo's data engineer: files arrive, sensors and schedules are ticked, and what they ask for is run.

The tests are its steps, in order. What is asserted is what one would look up on the pages of Dagster and MLflow.
"""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
from declarations import SYNTHETIC, declared
from plant import Plant, failures

from assets.data.clean import load_table
from assets.data.raw import load_raw
from pipelines import definitions
from resources.mlflow.registry import CHAMPION

pytestmark = [pytest.mark.slow, pytest.mark.ordered]

# NDCG@10 cannot fall by more than all of it, so that nothing asks for pre-training.
DEMO = declared(
    SYNTHETIC,
    raserec_candidate={"tolerance": 0.5, "least_events": 50, "least_users": 5},
    drift_report={"least_events": 50, "finetune_drop": 0.5, "pretrain_drop": 2, "pretrain_shift": 1},
)
MODEL = "rarec-demo-raserec"
MONDAY = datetime(2026, 11, 23, 3, tzinfo=UTC)
DAY_S = 86_400
TABLES = {"incoming_interactions", "raw_interactions", "interactions", "item_catalog", "user_profiles"}
IN_USE = {"raserec_candidate", "raserec_champion", "recommendations"}
NOT_WORSE = ("raserec_candidate", "not_worse")


@dataclass(frozen=True)
class Shown:
    """What the pages tell of one run.

    Attributes:
        tags: of the run in Dagster.
        assets: asset to metadata of what was materialised.
        checks: (asset, check) to whether it passed.
        mlflow: asset to its run there.
        failed: step to message.
    """

    tags: dict[str, str]
    assets: dict[str, dict[str, Any]]
    checks: dict[tuple[str, str], bool]
    mlflow: dict[str, mlflow.entities.Run]
    failed: dict[str, str]


class Day:
    """The installation, with a person in the part of Dagster's daemon; nothing is started but what was asked for."""

    def __init__(self, folder, instance):
        self.plant = Plant(folder, instance, demo=DEMO)
        self.instance = instance
        self.repository = self.plant.defs.get_repository_def()
        self.client = mlflow.MlflowClient(self.plant.home.tracking_uri)
        self.incoming = self.plant.home.data / "demo" / "incoming"
        self.incoming.mkdir(parents=True)
        self.cursors = {}

    def tick_sensor(self, name):
        """The runs that it asks for, but those that ran already, and why it asks for none."""
        sensor = self.repository.get_sensor_def(name)
        context = dg.build_sensor_context(
            self.instance,
            cursor=self.cursors.get(name),
            definitions=self.plant.defs,
            resources=self.plant.defs.resources if sensor.required_resource_keys else None,
        )
        ticked = sensor.evaluate_tick(context)
        self.cursors[name] = ticked.cursor
        asked = [
            (request.job_name or sensor.job_name, request)
            for request in ticked.run_requests
            if not self.instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": request.run_key}))
        ]
        return asked, ticked.skip_message

    def tick_schedule(self, name, when):
        """The run that it asks for."""
        schedule = self.repository.get_schedule_def(name)
        context = dg.build_schedule_context(self.instance, when, repository_def=self.repository)
        (request,) = schedule.evaluate_tick(context).run_requests
        return schedule.job_name, request

    def follow(self, job, request):
        """Run what was asked for, exactly so."""
        result = self.plant.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            run_config=request.run_config,
            tags={**request.tags, "dagster/run_key": request.run_key},
            raise_on_error=False,
        )
        return self.look_up(result)

    def by_hand(self, job, only=(), **ops):
        """Run a job as from its launchpad."""
        result = self.plant.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key="demo",
            asset_selection=[dg.AssetKey(name) for name in only] or None,
            run_config={"ops": {name: {"config": config} for name, config in ops.items()}} if ops else None,
            raise_on_error=False,
        )
        return self.look_up(result)

    def look_up(self, result):
        """What is stored of a run; whatever it made must have its run in MLflow, and a link there."""
        run = self.instance.get_run_by_id(result.run_id)
        failed = failures(result)
        assert run.is_success == (not failed)
        assert run.tags["dagster/partition"] == "demo"
        assets, checks = {}, {}
        for record in self.instance.get_records_for_run(result.run_id).records:
            event = record.event_log_entry.dagster_event
            if event and event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
                made = event.step_materialization_data.materialization
                assert made.partition == "demo"
                assets[made.asset_key.to_user_string()] = {name: one.value for name, one in made.metadata.items()}
            elif event and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                checks[check.asset_key.to_user_string(), check.check_name] = check.passed
        experiment = self.client.get_experiment_by_name("rarec")
        found = self.client.search_runs([experiment.experiment_id], f"tags.`dagster.run_id` = '{result.run_id}'")
        runs = {one.data.tags["dagster.asset_key"]: one for one in found}
        made = {name: told for name, told in assets.items() if "fingerprint" in told and not told["reused"]}
        assert runs.keys() == made.keys()
        for name, told in made.items():
            assert runs[name].info.status == "FINISHED"
            assert told["mlflow_run"].endswith(f"/runs/{runs[name].info.run_id}")
        return Shown(run.tags, assets, checks, runs, failed)

    def champion(self):
        """The version in MLflow that carries the alias."""
        return self.client.get_model_version_by_alias(MODEL, CHAMPION)

    def versions(self):
        """Number to tags of each registered version."""
        return {int(one.version): one.tags for one in self.client.search_model_versions(f"name='{MODEL}'")}

    def table(self, shown, asset, name):
        """A table of an artifact that a run told of."""
        return load_table(self.plant.store.open(asset, "demo", shown.assets[asset]["fingerprint"]), name)


def pairs(table):
    return set(zip(table["user_id"].astype(str), table["item_id"].astype(str), strict=True))


def events(lists, first_day, last_day, seed):
    """Ratings of these users and items at random times of those days."""
    rng = np.random.default_rng(seed)
    times = rng.integers(round(first_day * DAY_S), round(last_day * DAY_S), len(lists))
    return lists[["user_id", "item_id"]].assign(rating=4, timestamp=times).sort_values("timestamp", ignore_index=True)


def assert_in_use(day, shown, number, kind, replaced, decisions):
    """This version came into use in this run, on the evidence that both pages show."""
    told = shown.assets
    assert shown.checks[NOT_WORSE]
    assert told["raserec_candidate"]["decision"] in decisions
    assert (told["raserec_champion"]["version"], told["raserec_champion"]["moved"]) == (number, True)
    assert told["recommendations"]["model"] == f"champion, version {number}"
    champion = day.champion()
    assert int(champion.version) == number
    assert champion.tags["rarec.kind"] == kind
    assert champion.tags.get("rarec.replaced") == replaced
    proof = json.loads(champion.tags["rarec.evidence"])
    assert proof["version"] == number
    assert {name: proof[name] for name in ("decision", "reason")} == {
        name: told["raserec_candidate"][name] for name in ("decision", "reason")
    }


def first_champion(day):
    """The weekly training, and its model promoted by hand; what it recommends."""
    trained = day.follow(*day.tick_schedule("rarec_raserec_weekly", MONDAY))
    assert trained.tags["dagster/schedule_name"] == "rarec_raserec_weekly"
    assert {
        *TABLES,
        "raserec_pretrained",
        "memory_bank",
        "raserec_finetuned",
        "raserec_controls",
        "ranking_baselines",
        "ranking_metrics",
    } < trained.assets.keys()
    assert all(trained.checks.values())
    assert ("user_sequences", "no_leak_between_splits") in trained.checks
    assert {"raserec_pretrained", "raserec_finetuned"} < trained.mlflow.keys()
    assert trained.assets["recommendations"]["model"] == "the current raserec_finetuned"
    assert day.versions() == {}
    promoted = day.by_hand("promote")
    assert promoted.assets.keys() == IN_USE
    assert_in_use(day, promoted, 1, "trained", None, ["first"])
    return day.table(promoted, "recommendations", "recommendations"), day.table(trained, "interactions", "interactions")


def take_in(day, names, warned=()):
    """The sensor asks for one run over the files that arrived, and for no other; these checks warn."""
    ((job, request),), _ = day.tick_sensor("incoming_sensor")
    shown = day.follow(job, request)
    assert job == "ingest"
    assert shown.tags["dagster/sensor_name"] == "incoming_sensor"
    assert shown.tags["rarec/reason"] == f"{len(names)} new files"
    assert shown.tags["rarec/files"] == ", ".join(names)
    assert shown.assets.keys() == {*TABLES, "user_sequences"}
    assert {name for (_, name), passed in shown.checks.items() if not passed} == set(warned)
    assert day.tick_sensor("incoming_sensor") == ([], "no new files")
    return shown


def drifted(day, when):
    """The weekly report, and the one run that it asks for."""
    measured = day.follow(*day.tick_schedule("rarec_drift_weekly", when))
    assert measured.assets.keys() == {*TABLES, "drift_report"}
    report = measured.assets["drift_report"]
    assert Path(report["report"]).is_file()
    ((job, request),), _ = day.tick_sensor("follow_drift")
    shown = day.follow(job, request)
    assert (shown.tags["rarec/verdict"], shown.tags["rarec/reason"]) == (report["verdict"], report["reason"])
    assert day.tick_sensor("follow_drift")[0] == []
    return job, report, shown


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """One day for all steps; each leaves for the next what it found."""
    root = tmp_path_factory.mktemp("day")
    (root / "dagster").mkdir()
    shutil.copy(Path(definitions.__file__).with_name("dagster.yaml"), root / "dagster")
    with dg.DagsterInstance.from_config(str(root / "dagster")) as instance:
        yield Day(root / "home", instance)


def test_the_weekly_training_makes_a_model_that_is_promoted_by_hand(day):
    day.lists, day.published = first_champion(day)
    day.today = day.published["timestamp"].max() / DAY_S


def test_a_file_counts_once_its_name_says_that_it_is_complete(day):
    """The first drop: everybody takes what was recommended."""
    assert day.tick_sensor("incoming_sensor") == ([], "no new files")
    day.first = events(day.lists[day.lists["rank"] <= 2], day.today + 1, day.today + 3, seed=1)
    day.first.to_csv(day.incoming / "first.csv.part", index=False)
    assert day.tick_sensor("incoming_sensor") == ([], "no new files")
    (day.incoming / "first.csv.part").rename(day.incoming / "first.csv")
    shown = take_in(day, ["first.csv"])
    assert shown.assets["incoming_interactions"]["dagster/row_count"] == len(day.first)
    assert shown.assets["interactions"]["rows"] == len(day.published) + len(day.first)
    assert int(day.champion().version) == 1


def test_a_second_file_is_added_to_the_first(day):
    day.second = events(day.lists[day.lists["rank"].between(3, 4)], day.today + 3, day.today + 6, seed=2)
    day.second.to_parquet(day.incoming / "second.parquet", index=False)
    shown = take_in(day, ["second.parquet"])
    assert shown.assets["interactions"]["rows"] == len(day.published) + len(day.first) + len(day.second)


def test_a_champion_that_fares_well_need_only_remember(day):
    job, report, shown = drifted(day, MONDAY + timedelta(weeks=1))
    assert job == report["verdict"] == "refresh"
    assert (report["champion"], report["new events"]) == (1, len(day.first) + len(day.second))
    assert shown.assets.keys() == {*TABLES, "refreshed_memory", *IN_USE}
    assert shown.assets["refreshed_memory"]["new memories"] >= len(day.first) + len(day.second)
    assert_in_use(day, shown, 2, "refreshed", "1", ["better", "not worse"])
    served = day.table(shown, "recommendations", "recommendations")
    assert not pairs(served) & (pairs(day.first) | pairs(day.second))


def test_bad_rows_are_set_aside_and_what_is_delivered_twice_counts_once(day):
    """The third drop: everybody turns to what few had watched."""
    rare = day.published["item_id"].value_counts(ascending=True).index
    had = pairs(day.published) | pairs(day.lists)
    turned = [
        (user, item)
        for user in day.lists["user_id"].unique()
        for item in [one for one in rare if (str(user), str(one)) not in had][:4]
    ]
    third = events(pd.DataFrame(turned, columns=["user_id", "item_id"]), day.today + 10, day.today + 22, seed=3)
    lines = third.to_csv(index=False).splitlines()
    bad = [lines[1].replace(",4,", ",9,"), lines[2].rsplit(",", 1)[0] + ",yesterday", "," + lines[3].split(",", 1)[1]]
    for name in ("third again.csv", "third.csv"):
        (day.incoming / name).write_text("\n".join([*lines, *bad]) + "\n")
    shown = take_in(day, ["third again.csv", "third.csv"], warned=["rows_set_aside"])
    told = shown.assets["incoming_interactions"]
    assert told["bad_rows"] == 3
    assert told["judged now"].count("accepted") == told["judged now"].count("already known") == 1
    rows = sum(map(len, (day.published, day.first, day.second, third)))
    assert shown.assets["interactions"]["rows"] == rows
    raw = day.plant.store.open("raw_interactions", "demo", shown.assets["raw_interactions"]["fingerprint"])
    aside = load_raw(raw).quarantine
    assert aside["line"].tolist() == [len(lines) + 1, len(lines) + 2, len(lines) + 3]
    assert shown.assets["raw_interactions"]["quarantined_rows"] == 3


def test_what_a_memory_cannot_make_good_trains_stage_2_anew(day):
    job, report, shown = drifted(day, MONDAY + timedelta(weeks=2))
    assert job == report["verdict"] == "finetune"
    assert report["reason"].startswith("NDCG@10 went from ")
    assert report["champion"] == 2
    assert shown.assets.keys() == {*TABLES, "refreshed_memory", "refreshed_finetuned", *IN_USE}
    assert "epoch_loss" in shown.mlflow["refreshed_finetuned"].data.metrics
    assert shown.assets["raserec_candidate"]["window what"] == "all events that came after the training data"
    assert shown.assets["raserec_candidate"]["window from"] >= shown.assets["refreshed_finetuned"]["unseen_since"]
    assert_in_use(day, shown, 3, "finetuned", "2", ["better", "not worse"])


def test_somebody_complains_and_the_one_before_serves_again(day):
    shown = day.by_hand("rollback")
    assert shown.assets == {
        "raserec_champion": {"version": 2, "before": "version 3", "reason": "rolled back", "moved": True}
    }
    assert int(day.champion().version) == 2
    assert day.versions()[3]["rarec.rolled_back_to"] == "2"
    shown = day.by_hand("promote", only=["recommendations"])
    assert shown.assets["recommendations"]["model"] == "champion, version 2"


def test_the_daemon_does_not_bring_the_same_version_back(day):
    measured = day.follow(*day.tick_schedule("rarec_drift_weekly", MONDAY + timedelta(weeks=3)))
    assert measured.assets["drift_report"]["reused"]
    assert day.tick_sensor("follow_drift")[0] == []


@pytest.mark.parametrize(
    ("job", "config"), [("finetune", {"refreshed_memory": {"window_days": 7}}), ("promote", {})]
)  # fmt: skip
def test_nor_does_a_person_by_doing_what_was_done_before(day, job, config):
    shown = day.by_hand(job, raserec_candidate={"source": "finetuned"}, **config)
    assert shown.assets["raserec_candidate"]["reused"]
    assert shown.checks[NOT_WORSE]
    when = day.versions()[3]["rarec.rolled_back"]
    message = f"version 3 of {MODEL} was rolled back on {when} in favour of version 2"
    assert shown.failed["raserec_champion"].startswith(message)
    assert not {"raserec_champion", "recommendations"} & shown.assets.keys()
    assert int(day.champion().version) == 2
    assert day.versions().keys() == {1, 2, 3}
