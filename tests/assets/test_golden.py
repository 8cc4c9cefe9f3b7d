"""The graph is as it was recorded before its redesign: definitions, and the identity of every artifact of the demo.

What assets tell in Dagster and MLflow is compared whenever a test runs them (`Plant.run`).
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import dagster as dg
import pytest
from golden import GOLDEN, unlike_golden
from plant import Plant

from rarec.rella.training_samples import TrainingSampleSettings, save_variants
from resources.artifacts.identity import fingerprint
from resources.artifacts.manifest import Manifest
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import Version
from resources.mlflow.tracking import MlflowTracking

DEMO = "demo"
RECORDED = GOLDEN["demo"]
# Made here as ever, since later identities read their content; they take no training.
MADE = {
    "raw_interactions", "interactions", "item_catalog", "user_profiles", "user_sequences", "ctr_samples",
    "textual_samples",
}  # fmt: skip
# The configuration, and the champion of then (its version), of what was recorded more than once, in that order.
CASES = {
    "recommendations": [({}, 0), ({}, 1), ({}, 2), ({}, 3)],
    "raserec_candidate": [({}, 0), ({"source": "refreshed"}, 1), ({"source": "finetuned"}, 2)],
    "refreshed_memory": [({}, 1), ({"window_days": 7.0}, 2)],
    "refreshed_finetuned": [({}, 2)],
    "drift_report": [({}, 1)],
    "rella_drift_report": [({}, 1)],
}


class StubManifest(Manifest):
    """Of an artifact whose content lies nowhere."""

    stub: str

    @property
    def data_version(self):
        return self.stub


class RecordedStore(ArtifactStore):
    """A store that also holds every recorded artifact, without its files."""

    stubs: ClassVar[dict[tuple[str, str], StubManifest]] = {}

    def find(self, asset, partition, fingerprint):
        return self._stub(asset, fingerprint) or super().find(asset, partition, fingerprint)

    def open(self, asset, partition, fingerprint):
        return self._stub(asset, fingerprint) or super().open(asset, partition, fingerprint)

    def manifests(self, asset="[!.]*", partition="*"):
        yield from (one for one in self.stubs.values() if one.asset == asset)
        yield from super().manifests(asset, partition)

    def _stub(self, asset, fingerprint):
        manifest = self.stubs.get((asset, fingerprint))
        return None if manifest is None else Stub(manifest, folder=self.local_folder(asset))

    def local_folder(self, asset):
        return Path(self.cache) / "stubs" / asset


class Stub(Artifact):
    """Its folder holds what a test put there."""

    @property
    def path(self):
        return self._folder

    def file(self, name):
        return self._folder / name


def champions(track: str, number: int):
    """Tracking whose registry holds the recorded versions of a track, of which one is the champion."""

    class Registry:
        name = f"rarec-{DEMO}-{track}"

        def champion(self):
            recorded = [one for one in GOLDEN["champions"][track] if one["number"] == number]
            return Version(model=self.name, **recorded[0]) if recorded else None

    class Tracking(MlflowTracking):
        def registry(self, _track, _dataset):
            return Registry()

    return Tracking(tracking_uri="none", ui_url="none", artifact_root="none")


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(tmp_path_factory.mktemp("plant"), instance)


@pytest.fixture(scope="module")
def store(plant):
    RecordedStore.stubs = {
        (one["asset"], one["fingerprint"]): StubManifest(
            asset=one["asset"], partition=DEMO, fingerprint=one["fingerprint"], code_version=one["code_version"],
            config=one["config"], inputs=one["inputs"], created=datetime.now(UTC).isoformat(), files={},
            metadata={"values": {}, "markdown": {}, "files": {}, "mlflow_run": ""}, stub=one["data_version"],
        )
        for one in RECORDED if one["asset"] not in MADE
    }  # fmt: skip
    store = RecordedStore(root=plant.home.artifacts, cache=str(plant.home.cache))
    mixed = next(one for one in RECORDED if one["asset"] == "mixed_reit_samples")
    variants = TrainingSampleSettings(**mixed["config"]).variants()
    for asset in ("mixed_reit_samples", "lora_checkpoint"):
        store.local_folder(asset).mkdir(parents=True)
        save_variants(variants, store.local_folder(asset))
    return store


def test_definitions_are_as_recorded(plant):
    assert unlike_golden(plant.defs) == {}


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: f"{one['asset']}-{one['fingerprint'][:4]}")
def test_fingerprints_follow_from_what_was_recorded(one):
    made = fingerprint(one["asset"], one["code_version"], one["config"], one["inputs"])
    assert made == one["fingerprint"]


def test_identities_of_the_demo_are_as_recorded(plant, store):
    """Every asset, in the recorded order, is asked for with its artifact in the store: it is found, or it changed."""
    seen: dict[str, int] = {}
    for one in RECORDED:
        asset = one["asset"]
        cases = CASES.get(asset, [({}, 0)])
        config, champion = cases[seen.setdefault(asset, 0)]
        seen[asset] += 1
        track = "rella" if "rella" in asset else "raserec"
        (made,) = (one for one in plant.defs.assets if dg.AssetKey(asset) in one.keys)
        result = dg.materialize(
            [made],
            partition_key=DEMO,
            instance=plant.instance,
            resources={
                **plant.defs.resources,
                "store": store,
                **({} if asset in MADE else {"tracking": champions(track, champion)}),
            },
            run_config={
                "ops": {made.op.name: {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
        assert result.success, (asset, [e.step_failure_data for e in result.get_step_failure_events()])
        told = {
            event.asset_key.to_user_string(): event.materialization.metadata
            for event in result.get_asset_materialization_events()
        }[asset]
        assert told["fingerprint"].value == one["fingerprint"], asset
        if asset in MADE:
            found = store.open(asset, DEMO, one["fingerprint"])
            assert found.data_version == one["data_version"], f"{asset} has the same identity, but other content"
        else:
            assert told["reused"].value, asset
    assert len(seen) == 32
