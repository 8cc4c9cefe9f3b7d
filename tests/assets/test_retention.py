"""Cleaning up beside other runs."""

import re
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import fsspec
import pytest

from assets.framework.champion import Champion
from assets.retention import clean_up
from resources.artifacts.identity import fingerprint
from resources.artifacts.remote import written_at
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import Version
from resources.mlflow.tracking import MlflowTracking
from resources.retention import wanted_versions
from resources.workspace import Workspace


@dg.job
def clean():
    clean_up()


@dg.job
def slow():
    pass


def test_cleaning_up_names_the_runs_that_it_waits_for(tmp_path):
    resources = {
        "store": ArtifactStore(root=str(tmp_path), cache=str(tmp_path)),
        "tracking": MlflowTracking(tracking_uri="http://127.0.0.1:9", ui_url="", artifact_root=""),
        "workspace": Workspace(data="", datasets="", cache="", work="", ledgers=""),
    }
    config = {"ops": {"clean_up": {"config": {"dry_run": False}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        other, _ = (
            instance.create_run_for_job(slow, status=dg.DagsterRunStatus[status]) for status in ("STARTED", "SUCCESS")
        )
        with pytest.raises(dg.Failure, match=rf"terminate that run on Dagster's page: {other.run_id} \(slow\)$"):
            clean.execute_in_process(instance=instance, resources=resources, run_config=config)


class Registered:
    """A registry of these versions."""

    name, dataset = "rarec-shop-raserec", "shop"

    def __init__(self, versions, champion):
        self._versions, self._champion = versions, champion

    def versions(self):
        return self._versions

    def champion(self):
        return self._champion


def clean_all(store, tmp_path, **config):
    """Delete whatever may go, however young; the table of verdicts."""
    resources = {
        "store": store,
        "tracking": MlflowTracking(tracking_uri="sqlite://", ui_url="", artifact_root=""),
        "workspace": Workspace(
            data="", datasets=str(tmp_path / "none"), cache="", work=str(tmp_path / "work"), ledgers=""
        ),
    }
    config = {"ops": {"clean_up": {"config": {"dry_run": False, "days": 1e-9, **config}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        result = clean.execute_in_process(instance=instance, resources=resources, run_config=config)
    assert result.success
    (output,) = [event for event in result.all_node_events if event.event_type_value == "STEP_OUTPUT"]
    return output.step_output_data.metadata["verdicts"].value


def test_models_of_a_data_set_whose_file_is_absent_keep_what_they_are_made_of(tmp_path, monkeypatch):
    store = ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    made = {}
    for name in ("registered", "forgotten"):
        made[name] = fingerprint("memory_bank", "1", {"name": name}, {})
        with store.write(
            "memory_bank", "shop", made[name], inputs={}, config={"name": name}, code_version="1"
        ) as draft:
            (draft.path / "bank.npy").write_bytes(b"1")
    version = Version("rarec-shop-raserec", 1, {"memory_bank": made["registered"]}, "trained")
    monkeypatch.setattr(MlflowTracking, "registries", lambda _: [Registered([version], champion=None)])
    clean_all(store, tmp_path)
    assert store.find("memory_bank", "shop", made["registered"]) is not None
    assert store.find("memory_bank", "shop", made["forgotten"]) is None


@pytest.fixture
def refreshed_weekly(tmp_path, monkeypatch):
    """Eight champions in a row, each with the memory of the one before it and what came since: store, versions."""
    store = ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))

    def make(asset, number, inputs):
        config = {"number": number}
        identity = fingerprint(asset, "1", config, inputs)
        with store.write(asset, "shop", identity, inputs=inputs, config=config, code_version="1") as draft:
            (draft.path / "file").write_text(f"{asset} {number}")
        return draft.artifact

    encoder = make("raserec_pretrained", 1, {})
    made_of = {"raserec_pretrained": encoder, "memory_bank": make("memory_bank", 1, {"encoder": encoder.fingerprint})}
    versions = []
    for number in range(1, 9):
        if number > 1:
            inputs = {**Champion(None, made_of).inputs, "encoder": encoder.fingerprint}
            bank = make("refreshed_memory", number, inputs)
            made_of = {"raserec_pretrained": encoder, "refreshed_memory": bank}
        identities = {name: artifact.fingerprint for name, artifact in made_of.items()}
        replaced = number - 1 if number > 1 else None
        versions.append(Version(Registered.name, number, identities, "refreshed", replaced=replaced))

    def register(versions, champion):
        monkeypatch.setattr(MlflowTracking, "registries", lambda _: [Registered(versions, champion)])

    register(versions, versions[-1])
    return store, versions, register


def kept(store, versions):
    """Numbers of the versions that have all that they are made of."""

    def whole(version):
        return all(store.find(asset, "shop", identity) is not None for asset, identity in version.artifacts.items())

    return [version.number for version in versions if whole(version)]


def test_memories_of_old_champions_go(refreshed_weekly, tmp_path):
    store, versions, _ = refreshed_weekly
    told = clean_all(store, tmp_path)
    assert kept(store, versions) == [3, 4, 5, 6, 7, 8]
    assert len(list(store.manifests())) == 1 + 6  # the encoder is that of all
    reasons = dict(re.findall(r"shop/(\w+) \|[^|]*\| ([^|]*) \|", told))
    banks = {one.number: reasons[list(one.artifacts.values())[-1]] for one in versions}
    assert banks == {
        1: "gone",
        2: "gone",
        **{number: f"version {number} of {Registered.name} can be restored by `rollback`" for number in range(3, 8)},
        8: f"version 8 of {Registered.name} is the champion",
    }


@pytest.mark.parametrize(
    ("champion", "rolled_back", "young", "rollbacks", "left"),
    [
        (8, (), (), 1, [7, 8]),
        (6, (), (), 1, [5, 6, 8]),  # the newest stays, too: it may be about to be promoted
        (6, (5, 4), (), 2, [2, 3, 6, 8]),  # rollbacks pass over what was rolled back
        (8, (), (1, 4), 1, [1, 4, 7, 8]),
        (None, (), (), 5, [8]),
    ],
)
def test_which_versions_keep_what_they_are_made_of(
    refreshed_weekly, tmp_path, champion, rolled_back, young, rollbacks, left
):
    store, versions, register = refreshed_weekly
    versions = [
        replace(
            one,
            rolled_back="2026-11-01" if one.number in rolled_back else "",
            registered=time.time() + 60 if one.number in young else time.time() - 60,
        )
        for one in versions
    ]
    register(versions, None if champion is None else versions[champion - 1])
    clean_all(store, tmp_path, versions=rollbacks)
    assert kept(store, versions) == left


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A store in memory, in which a champion's bank was made twice, with other content the second time."""
    monkeypatch.setattr(MlflowTracking, "registry", lambda *_: Registered([], None))
    store = ArtifactStore(root=f"memory://{uuid.uuid4().hex}", cache=str(tmp_path / "cache"))
    identity = fingerprint("memory_bank", "1", {}, {})
    made = []
    for content in ("first", "second"):
        with store.write(
            "memory_bank", "shop", identity, inputs={}, config={}, code_version="1", replace=True
        ) as draft:
            (draft.path / "deep").mkdir()
            (draft.path / "deep" / "file").write_text(content)
        made.append(draft.artifact)
    return store, *made


def age(store, folder, days):
    """Make it look as if the files below were written so long ago."""
    fs, path = fsspec.core.url_to_fs(f"{store.root}/{folder}")
    for file in fs.find(path):
        fs.store[file].created = datetime.now(UTC) - timedelta(days=days)


def stored(store):
    fs, root = fsspec.core.url_to_fs(store.root)
    return {path.removeprefix(f"{root}/") for path in fs.find(root)}


def place_of(artifact):
    return f"memory_bank/shop/{artifact.fingerprint}/{artifact.data_version}"


def test_replaced_content_in_a_remote_store_goes_when_it_is_old(remote, tmp_path):
    store, first, second = remote
    age(store, "", 31)
    assert f"{place_of(first)} | 0.0 | would go" in clean_all(store, tmp_path, days=30, dry_run=True)
    assert f"{place_of(first)}/deep/file" in stored(store)
    age(store, place_of(first), 29)
    assert f"{place_of(first)} | 0.0 | younger than 30 days" in clean_all(store, tmp_path, days=30)
    assert f"{place_of(first)}/deep/file" in stored(store)
    age(store, place_of(first), 31)
    assert f"{place_of(first)} | 0.0 | gone" in clean_all(store, tmp_path, days=30)
    assert stored(store) == {f"memory_bank/shop/{second.fingerprint}/manifest.json", f"{place_of(second)}/deep/file"}
    assert store.find("memory_bank", "shop", second.fingerprint).file("deep/file").read_text() == "second"


def test_young_content_stays_beside_an_artifact_that_goes(remote, tmp_path):
    store, first, second = remote
    age(store, place_of(first), -1)  # somebody uploads it again just now
    told = clean_all(store, tmp_path)
    assert f"memory_bank/shop/{second.fingerprint} | 0.0 | gone" in told
    assert stored(store) == {f"{place_of(first)}/deep/file"}


def test_what_an_upload_or_a_removal_left_goes_and_what_is_not_ours_stays(remote, tmp_path):
    store, first, second = remote
    fs, root = fsspec.core.url_to_fs(store.root)
    fs.rm_file(f"{root}/memory_bank/shop/{second.fingerprint}/manifest.json")
    fs.pipe_file(f"{root}/somebody/elses/files/in/here", b"1")
    fs.pipe_file(f"{root}/{place_of(first)[:-33]}/beside/deep/file", b"1")
    age(store, "", 31)
    clean_all(store, tmp_path, days=30)
    assert stored(store) == {"somebody/elses/files/in/here", f"{place_of(first)[:-33]}/beside/deep/file"}


def test_content_stays_while_a_manifest_is_damaged_or_its_file_system_tells_no_time(remote, tmp_path, monkeypatch):
    store, first, second = remote
    fs, root = fsspec.core.url_to_fs(store.root)
    manifest = f"{root}/memory_bank/shop/{second.fingerprint}/manifest.json"
    text = fs.cat_file(manifest)
    fs.pipe_file(manifest, b"{")
    age(store, "", 31)
    assert f"{place_of(first)} | 0.0 | may be needed: {manifest} is damaged" in clean_all(store, tmp_path, days=30)
    fs.pipe_file(manifest, text)
    find = type(fs).find
    monkeypatch.setattr(
        type(fs), "find",
        lambda self, path, **options: {
            name: {"name": name, "size": info["size"]} for name, info in find(self, path, detail=True).items()
        },
    )  # fmt: skip
    assert f"{place_of(first)} | 0.0 | its age is unknown" in clean_all(store, tmp_path, days=30)
    monkeypatch.undo()
    assert f"{place_of(first)}/deep/file" in stored(store)


@pytest.mark.parametrize(
    "told",
    [
        {"LastModified": datetime(2026, 11, 1, tzinfo=UTC)},
        {"mtime": 1_793_491_200},
        {"created": 1_793_491_200.0},
    ],
)
def test_file_systems_tell_times_under_names_of_their_own(told):
    assert written_at(told) == datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    assert written_at({"size": 1}) is written_at({"mtime": ""}) is None


def test_what_the_champion_needs_stays_though_its_data_are_no_longer_todays(refreshed):
    refreshed.grow(0.5)
    assert refreshed.run("drift").success
    plant, registry = refreshed.plant, refreshed.registry
    job = plant.defs.resolve_job_def("clean")

    def clean(**config):
        return job.execute_in_process(
            instance=plant.instance, run_config={"ops": {"clean_up": {"config": {"days": 1e-9, **config}}}}
        )

    def told():
        (output,) = [event for event in clean().all_node_events if event.event_type_value == "STEP_OUTPUT"]
        return re.findall(r"own/\w+ \|.*would go", output.step_output_data.metadata["verdicts"].value)

    def held():
        return {(one.asset, one.fingerprint) for one in plant.store.manifests()}

    before = held()
    assert told()
    serves = next(iter(registry.champion().open(plant.store, "own").values())).path / "manifest.json"
    text = serves.read_text()
    serves.write_text("{")
    assert not told()
    serves.write_text(text)
    assert held() == before
    assert clean(dry_run=False).success
    assert held() < before
    known = {version.number: version for version in registry.versions()}
    wanted = wanted_versions([*known.values()], registry.champion(), 5, days=0)
    assert {max(known), registry.champion().number} <= wanted.keys()
    for number in wanted:
        assert known[number].open(plant.store, "own").keys() == known[number].artifacts.keys()
        assert set(known[number].artifacts.items()) <= held()
    assert refreshed.run("drift").success  # all that is needed is there
