"""A day of operations on the demo: three drops of new files, what sensors and schedule ask for, and a rollback."""

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from assets_plant import Plant, failures, metadata

from assets.raw import load_table
from rarec.data.spec import builtin_specs

pytestmark = pytest.mark.slow

# The demo as it comes, with shorter trainings, and thresholds that this day's drops cross one after the other.
SHORT = {
    "raserec_pretrained": {"epochs": 8},
    "raserec_finetuned": {"epochs": 4},
    "raserec_candidate": {"tolerance": 0.9},
    "drift_report": {"finetune_drop": 0.3, "pretrain_drop": 0.99},
}
DAY_S = 86_400


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    demo = builtin_specs()["demo"]
    overrides = {
        stage: {**demo.overrides.get(stage, {}), **SHORT.get(stage, {})} for stage in {*demo.overrides, *SHORT}
    }
    lines = ['name = "demo"', f'title = "{demo.title}"', 'domain = "movies"', "rating_scale = [1, 5]"]
    lines += ["label_threshold = 3", "[[sources]]", 'format = "synthetic"']
    for stage, values in overrides.items():
        lines.append(f"[overrides.{stage}]")
        lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(
            tmp_path_factory.mktemp("plant"), instance, demo="\n".join(lines).replace("{", "{{").replace("}", "}}")
        )


def _toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


class Day:
    """What an operator would see, step by step."""

    def __init__(self, plant):
        self.plant = plant
        self.repository = plant.defs.get_repository_def()
        self.cursors = {}
        self.told = []

    def champion(self):
        champion = self.plant.defs.resources["tracking"].registry("raserec", "demo").champion()
        return champion and champion.number

    def tick(self, sensor):
        """The runs that the sensor asks for."""
        definition = self.repository.get_sensor_def(sensor)
        context = dg.build_sensor_context(
            instance=self.plant.instance, definitions=self.plant.defs, cursor=self.cursors.get(sensor)
        )
        data = definition.evaluate_tick(context)
        self.cursors[sensor] = data.cursor
        return data.run_requests

    def obey(self, request):
        """Run what was asked for, as the daemon would."""
        job = self.plant.defs.resolve_job_def(request.job_name or "ingest")
        result = job.execute_in_process(
            instance=self.plant.instance, partition_key=request.partition_key, tags=dict(request.tags),
            run_config=request.run_config or None, raise_on_error=False,
        )  # fmt: skip
        told = metadata(result)
        self.told.append((job.name, result.success, told.get("raserec_candidate", {}).get("decision"), self.champion()))
        return result, told

    def drop(self, name, rows):
        folder = self.plant.home.data / "demo" / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_csv(folder / f".{name}.part", index=False)
        (folder / f".{name}.part").rename(folder / name)

    def drift(self):
        """What the weekly schedule's run finds, and what the sensor makes of it."""
        schedule = self.repository.get_schedule_def("rarec_drift_weekly")
        with dg.build_schedule_context(repository_def=self.repository) as context:
            (asked,) = schedule.evaluate_tick(context).run_requests
        result = self.plant.run(asked.partition_key, track="drift")
        assert result.success, failures(result)
        return metadata(result)["drift_report"], self.tick("follow_drift")


def rows_of(users, items, start):
    """One event a user, a minute apart."""
    times = start + 60 * np.arange(len(users))
    return pd.DataFrame({"user_id": users, "item_id": items, "rating": 4, "timestamp": times})


def test_a_day(plant):
    day = Day(plant)
    first = plant.run("demo", track="raserec")
    assert first.success, failures(first)
    assert plant.run("demo", track="promote").success
    assert day.champion() == 1
    lists = pd.read_parquet(plant.artifact(first, "recommendations").file("recommendations.parquet"))
    interactions = load_table(plant.artifact(first, "interactions"), "interactions")
    newest = int(interactions["timestamp"].max())
    users = lists["user_id"].drop_duplicates().to_numpy()
    generator = np.random.default_rng(0)

    # Morning: people watch what was recommended. The champion foresees it; its memory is refreshed.
    best = lists[lists["rank"] <= 3].groupby("user_id", sort=False)["item_id"].first().reset_index()
    day.drop("morning.csv", rows_of(best["user_id"], best["item_id"], newest + DAY_S))
    (asked,) = day.tick("incoming_sensor")
    assert asked.tags["rarec/files"] == "morning.csv"
    _, told = day.obey(asked)
    assert told["interactions"]["rows"] == len(interactions) + len(best)
    assert day.tick("incoming_sensor") == []
    report, asked = day.drift()
    assert (report["verdict"], report["new events"]) == ("refresh", len(best))
    result, told = day.obey(asked[0])
    assert result.success, failures(result)
    assert told["refreshed_memory"]["new memories"] == len(best)
    assert told["recommendations"]["model"] == "champion, version 2"
    assert day.champion() == 2

    # Noon: they watch anything. The same file comes under a second name, and a tenth of its rows is bad.
    known = interactions["item_id"].unique()
    noon = rows_of(users, generator.choice(known, len(users)), newest + 2 * DAY_S).astype({"item_id": str})
    noon.loc[::10, "item_id"] = ""
    day.drop("noon.csv", noon)
    day.drop("noon-again.csv", noon)
    (asked,) = day.tick("incoming_sensor")
    _, told = day.obey(asked)
    good = int((noon["item_id"] != "").sum())
    assert told["incoming_interactions"]["dagster/row_count"] == len(best) + good
    report, asked = day.drift()
    assert report["verdict"] == "finetune"
    assert asked[0].tags["rarec/reason"].startswith("NDCG@10 went from")
    result, told = day.obey(asked[0])
    assert result.success == (told["raserec_candidate"]["decision"] != "worse")
    after_noon = day.champion()

    # Evening: all crowd to three films.
    day.drop("evening.csv", rows_of(users, generator.choice(known[:3], len(users)), newest + 3 * DAY_S))
    day.obey(day.tick("incoming_sensor")[0])
    report, asked = day.drift()
    assert report["verdict"] == "pretrain"
    result, told = day.obey(asked[0])
    assert told["user_sequences"]["until"] > 0
    assert result.success == (told["raserec_candidate"]["decision"] != "worse")

    # Night: the last champion is taken back.
    last = day.champion()
    assert last >= after_noon >= 2
    rollback = plant.defs.resolve_job_def("rollback")
    assert rollback.execute_in_process(instance=plant.instance, partition_key="demo").success
    assert day.champion() < last
    again = plant.run("demo", track="promote", only=["recommendations"])
    assert metadata(again)["recommendations"]["model"] == f"champion, version {day.champion()}"

    jobs = [run.job_name for run in plant.instance.get_runs()]
    assert {"raserec", "promote", "ingest", "drift", "refresh", "finetune", "pretrain", "rollback"} <= set(jobs)
    print(*day.told, sep="\n")
