"""The champion goes forth and back, and a version that was taken back says when, and in favour of which."""

import re
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from rarec.errors import InputError
from resources.artifacts.manifest import DamagedArtifact
from resources.mlflow.registry import CHAMPION, ModelRegistry, rollback_chain

STORE = SimpleNamespace(find=lambda asset, partition, identity: asset)  # that has lost nothing


@pytest.fixture
def client(tracking):
    return tracking._client()


@pytest.fixture
def registry(client, request):
    """With versions 1 to 3, the third one champion: each took the place of the one before."""
    registry = ModelRegistry(client, "rella", request.node.name)
    client.create_registered_model(registry.name)
    for number in (1, 2, 3):
        client.create_model_version(registry.name, "here", tags={"rarec.artifacts": f'{{"model": "{number}"}}'})
        registry.promote(registry.versions()[-1])
    return registry


def marks(registry):
    """Version to the one in favour of which it was rolled back."""
    return {one.number: one.rolled_back_to for one in registry.versions() if one.rolled_back}


def numbers(versions):
    return [version.number for version in versions]


def test_a_version_rolled_back_says_when_and_for_which(registry, client):
    assert numbers(registry.roll_back(STORE)) == [3, 2]
    tags = client.get_model_version_by_alias(registry.name, CHAMPION).tags
    assert not any("rolled" in tag for tag in tags)
    version = registry.versions()[2]
    assert (version.number, version.rolled_back_to) == (3, 2)
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(version.rolled_back) < timedelta(minutes=5)


def test_twice_in_a_row_goes_further_back_and_then_no_further(registry):
    assert numbers(registry.roll_back(STORE)) == [3, 2]
    assert numbers(registry.roll_back(STORE)) == [2, 1]
    assert marks(registry) == {3: 2, 2: 1}
    with pytest.raises(InputError, match="has no version before the champion; version 1 remains the champion"):
        registry.roll_back(STORE)
    assert (registry.champion().number, marks(registry)) == (1, {3: 2, 2: 1})


@pytest.mark.parametrize(("times", "left"), [(1, {}), (2, {2: 1})])
def test_a_rollback_that_is_undone_leaves_no_mark(registry, times, left):
    for _ in range(times):
        registry.roll_back(STORE)
    assert registry.roll_back(STORE, 3)[1] == registry.champion() == registry.versions()[2]
    assert marks(registry) == left  # version 1 was never found wanting
    assert registry.roll_back(STORE)[1].number == 3 - times  # as after the promotion, but for what was passed over


def test_a_champion_given_up_for_an_earlier_version_by_its_number_is_marked(registry):
    registry.roll_back(STORE)
    registry.roll_back(STORE)
    registry.promote(registry.versions()[2])
    assert marks(registry) == {2: 1}
    assert numbers(registry.roll_back(STORE, 2)) == [3, 2]  # 2 gave way to 1, not to 3
    assert marks(registry) == {3: 2}


def test_a_promotion_takes_the_mark_away(registry):
    registry.roll_back(STORE)
    assert registry.promote(registry.versions()[2]).rolled_back == ""
    assert (registry.champion().number, registry.champion().replaced, marks(registry)) == (3, 2, {})


@pytest.mark.parametrize("number", [3, 4])
def test_what_cannot_be_gone_to_changes_nothing(registry, number):
    with pytest.raises(InputError, match=r"version 3 remains the champion. Set `version` to one of 1, 2$"):
        registry.roll_back(STORE, number)
    assert (registry.champion().number, marks(registry)) == (3, {})


@pytest.mark.parametrize("fault", [None, DamagedArtifact("altered")])
def test_a_version_whose_artifact_is_lost_is_not_gone_to_and_nothing_is_changed(registry, fault):
    dataset = registry.name.split("-")[1]

    def find(asset, partition, identity):
        if (asset, partition, identity) != ("model", dataset, "2"):
            return asset
        if fault is not None:
            raise fault
        return None

    store = SimpleNamespace(find=find)
    lost = f"version 2 of {registry.name} has lost model/{dataset}/2 from the artifact store. Restore it from a backup"
    before = registry.versions()
    for number in (None, 2):
        with pytest.raises(InputError, match=re.escape(lost)):
            registry.roll_back(store, number)
    assert (registry.champion().number, registry.versions()) == (3, before)
    assert numbers(registry.roll_back(store, 1)) == [3, 1]


def test_a_version_tells_when_it_was_registered(registry):
    assert all(0 <= time.time() - one.registered < 300 for one in registry.versions())


def test_the_chain_is_what_rollbacks_go_through(registry):
    registry.promote(registry.versions()[0])  # the first is back in use, for the third
    assert [one.number for one in rollback_chain(registry.versions(), registry.champion())] == [3, 2]
    assert numbers(registry.roll_back(STORE)) == [1, 3]
    assert [one.number for one in rollback_chain(registry.versions(), registry.champion())] == [2]
    assert numbers(registry.roll_back(STORE)) == [3, 2]
    assert rollback_chain(registry.versions(), registry.champion()) == []
    with pytest.raises(InputError, match="has no version before the champion"):
        registry.roll_back(STORE)


def test_every_registered_model_is_found_whatever_its_data_set_and_track(tracking, client):
    for name in ("rarec-ml-100k-raserec", "rarec-shop-two_tower", "somebody-else"):
        client.create_registered_model(name)
    found = {(one.dataset, one.name) for one in tracking.registries()}
    assert {("ml-100k", "rarec-ml-100k-raserec"), ("shop", "rarec-shop-two_tower")} <= found
    assert not any(name == "somebody-else" for _, name in found)
