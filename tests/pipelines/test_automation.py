"""The automation conditions: drift is measured anew where its data or the champion changed, and nowhere else."""

import dagster as dg
import pytest

from pipelines.definitions import build_defs
from resources.settings import Installation

CHAMPIONS = {"drift_report": "raserec_champion", "rella_drift_report": "rella_champion"}


@pytest.fixture(scope="module")
def defs(tmp_path_factory):
    return build_defs(Installation.from_environment({"RAREC_HOME": str(tmp_path_factory.mktemp("home"))}))


def made(instance, asset, version):
    """As a run that materialised the asset for the demo leaves it."""
    tags = {"dagster/data_version": version}
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition="demo", tags=tags))


@pytest.mark.parametrize("report", CHAMPIONS)
def test_drift_is_measured_once_for_every_change(defs, report):
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = None

        def tick():
            nonlocal cursor
            evaluated = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
            cursor = evaluated.cursor
            return evaluated.get_requested_partitions(dg.AssetKey(report))

        made(instance, "interactions", "1")
        assert tick() == set()  # no champion yet, so nothing to measure
        made(instance, CHAMPIONS[report], "a")
        asked = [tick(), tick()]
        assert asked == [{"demo"}, set()]
        made(instance, "interactions", "2")
        assert tick() == {"demo"}
        assert tick() == set()
        made(instance, "interactions", "2")  # made again, with the same content
        assert tick() == set()
        made(instance, CHAMPIONS[report], "b")
        assert tick() == {"demo"}


def test_nothing_else_happens_of_itself(defs):
    graph = defs.resolve_asset_graph()
    keys = graph.materializable_asset_keys
    assert {key.to_user_string() for key in keys if graph.get(key).automation_condition} == set(CHAMPIONS)
