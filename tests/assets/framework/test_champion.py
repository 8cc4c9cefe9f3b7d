"""What a stage knows of the champion that it uses."""

from types import SimpleNamespace

import pytest

from assets.framework.champion import Champion, open_champion
from rarec.errors import InputError
from resources.mlflow.registry import Version

WINDOW = {"what": "all events", "events": 7}
ARTIFACTS = {name: SimpleNamespace(fingerprint=name[:1] * 4) for name in ("memory_bank", "item_catalog")}


def test_its_artifacts_are_inputs_under_names_of_their_own():
    assert Champion(None, ARTIFACTS).inputs == {"champion's memory_bank": "mmmm", "champion's item_catalog": "iiii"}


def test_its_window_is_that_of_its_promotion():
    version = Version("rarec-own-raserec", 3, {}, "trained", evidence={"window": WINDOW})
    assert Champion(version, {}).window == WINDOW


@pytest.mark.parametrize(("model", "job"), [("rarec-own-raserec", "promote"), ("rarec-own-rella", "promote_rella")])
def test_one_made_by_hand_has_nothing_to_compare_with(model, job):
    with pytest.raises(InputError, match=f"version 3 of {model} became champion without a comparison.*job `{job}`"):
        Champion(Version(model, 3, {}, "trained"), {}).window  # noqa: B018


def test_it_is_opened_through_the_registry_or_the_job_is_named_that_makes_one():
    version = SimpleNamespace(open=lambda store, dataset: {"memory_bank": f"{store}/{dataset}"})
    champions = {("raserec", "own"): version, ("rella", "own"): None}
    tracking = SimpleNamespace(registry=lambda *who: SimpleNamespace(champion=lambda: champions[who]))
    opened = open_champion(tracking, "store", "raserec", "own")
    assert (opened.version, opened.artifacts) == (version, {"memory_bank": "store/own"})
    with pytest.raises(InputError, match="own has no champion yet; run the job `promote_rella` first"):
        open_champion(tracking, "store", "rella", "own")
