"""The champion measured on what happened since its promotion, and the step that this asks for. Shown with RaSeRec's."""

import re
from dataclasses import replace

import dagster as dg
from plant import failures, metadata

from assets.data.clean import load_table


def test_drift_needs_a_champion(runs):
    early = runs("promoted")["drift"]
    assert "has no champion yet; run the job `promote` first" in failures(early)["drift_report"]


def test_without_new_events_what_was_kept_from_training_is_asked_for(promoted):
    result = promoted.run("drift")
    assert result.success, failures(result)
    told = metadata(result)["drift_report"]
    table = load_table(promoted.plant.artifact(result, "interactions"), "interactions")
    users = (table["user_id"].value_counts() >= 3).sum()  # shorter ones are trained on whole
    # The items of validation and test, each behind a prefix of its own.
    assert told["verdict"] == "refresh"
    assert told["reason"].startswith(f"{2 * users} events are not in the champion's memory; there are no events newer")


def test_a_champion_made_by_hand_is_measured_once_it_was_compared(promoted, monkeypatch):
    bare = replace(promoted.registry.champion(), evidence={})
    monkeypatch.setattr("resources.mlflow.registry.ModelRegistry.champion", lambda _: bare)
    assert "became champion without a comparison" in failures(promoted.run("drift"))["drift_report"]


def test_new_events_are_measured(promoted, runs):
    measured = metadata(runs("refreshed")["drift"])["drift_report"]
    assert measured["verdict"] == "refresh"
    assert measured["new events"] > 20
    assert 0 <= measured["unknown_items"] < 1
    assert measured["champion"] == 1


def test_what_was_refreshed_needs_nothing(refreshed):
    told = metadata(refreshed.run("drift"))["drift_report"]
    assert (told["champion"], told["verdict"]) == (2, "none")


def test_the_sensor_asks_once_for_what_the_newest_report_asks_for(refreshed):
    plant = refreshed.plant
    sensor = plant.defs.get_repository_def().get_sensor_def("follow_drift")

    def tick(cursor=None):
        resources = {"tracking": plant.tracking}
        context = dg.build_sensor_context(plant.instance, cursor, definitions=plant.defs, resources=resources)
        return sensor.evaluate_tick(context)

    assert tick().skip_message == "own: the newest drift_report measured version 1, which is no longer in use"
    refreshed.registry.roll_back(plant.store, 1)
    data = tick()
    (request,) = data.run_requests
    assert (request.job_name, request.partition_key) == ("refresh", "own")
    assert re.search("new events to remember|not in the champion's memory", request.tags["rarec/reason"])
    assert tick(data.cursor).run_requests == []
