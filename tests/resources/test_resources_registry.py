"""The champion goes forth and back, and a version that was taken back says when, and in favour of which."""

from datetime import UTC, datetime, timedelta

import pytest

from rarec.errors import InputError
from resources.registry import CHAMPION, ModelRegistry
from resources.tracking import MlflowTracking


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    tracking = MlflowTracking(tracking_uri=f"sqlite:///{folder}/mlflow.db", ui_url="", artifact_root=str(folder))
    tracking.check()
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
    assert numbers(registry.roll_back()) == [3, 2]
    tags = client.get_model_version_by_alias(registry.name, CHAMPION).tags
    assert not any("rolled" in tag for tag in tags)
    version = registry.versions()[2]
    assert (version.number, version.rolled_back_to) == (3, 2)
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(version.rolled_back) < timedelta(minutes=5)


def test_twice_in_a_row_goes_further_back_and_then_no_further(registry):
    assert numbers(registry.roll_back()) == [3, 2]
    assert numbers(registry.roll_back()) == [2, 1]
    assert marks(registry) == {3: 2, 2: 1}
    with pytest.raises(InputError, match="has no version before the champion; the champion is version 1"):
        registry.roll_back()
    assert (registry.champion().number, marks(registry)) == (1, {3: 2, 2: 1})


@pytest.mark.parametrize(("times", "left"), [(1, {}), (2, {2: 1})])
def test_a_rollback_that_is_undone_leaves_no_mark(registry, times, left):
    for _ in range(times):
        registry.roll_back()
    assert registry.roll_back(3)[1] == registry.champion() == registry.versions()[2]
    assert marks(registry) == left  # version 1 was never found wanting
    assert registry.roll_back()[1].number == 3 - times  # as after the promotion, but for what was passed over


def test_a_champion_given_up_for_an_earlier_version_by_its_number_is_marked(registry):
    registry.roll_back()
    registry.roll_back()
    registry.promote(registry.versions()[2])
    assert marks(registry) == {2: 1}
    assert numbers(registry.roll_back(2)) == [3, 2]  # 2 gave way to 1, not to 3
    assert marks(registry) == {3: 2}


def test_a_promotion_takes_the_mark_away(registry):
    registry.roll_back()
    assert registry.promote(registry.versions()[2]).rolled_back == ""
    assert (registry.champion().number, registry.champion().replaced, marks(registry)) == (3, 2, {})


@pytest.mark.parametrize("number", [3, 4])
def test_what_cannot_be_gone_to_changes_nothing(registry, number):
    with pytest.raises(InputError, match="the champion is version 3, there are 1, 2, 3"):
        registry.roll_back(number)
    assert (registry.champion().number, marks(registry)) == (3, {})
