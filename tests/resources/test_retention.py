import os
import time

import fsspec
import pytest

from resources.artifacts.identity import fingerprint
from resources.artifacts.store import ArtifactStore
from resources.retention import judge_artifacts, judge_work, remove


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    root = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}/store"
    return ArtifactStore(root=root, cache=str(tmp_path / "cache"))


def make(store, asset, content, inputs=None, partition="demo"):
    config = {"content": content}
    identity = fingerprint(asset, "1", config, inputs or {})
    with store.write(asset, partition, identity, inputs=inputs or {}, config=config, code_version="1") as draft:
        (draft.path / "file").write_text(content)
    return draft.artifact


def test_what_is_in_use_stays_with_all_that_it_was_made_from(store):
    raw = make(store, "raw", "r")
    old = make(store, "table", "t0", {"raw": raw.data_version})
    table = make(store, "table", "t1", {"raw": raw.data_version})
    # An encoder is told by its fingerprint, and under another name.
    model = make(store, "model", "m", {"table": table.data_version})
    first = make(store, "bank", "b", {"encoder": model.fingerprint})
    other = make(store, "bank", "b", {"encoder": model.fingerprint}, partition="other")
    told = make(store, "bank", "told")
    bank = make(store, "bank", "c", {"encoder": model.fingerprint, "former bank": told.fingerprint})
    in_use = {("bank", "demo", bank.fingerprint): "in use", ("bank", "demo", "lost"): "in use"}
    verdicts = judge_artifacts(store.manifests(), in_use, days=0, told_by="former ")
    going = {identity for identity, verdict in verdicts.items() if not verdict.kept_for}
    assert going == {
        ("table", "demo", old.fingerprint),
        ("bank", "demo", first.fingerprint),
        ("bank", "demo", told.fingerprint),
        ("bank", "other", other.fingerprint),
    }
    assert verdicts["bank", "demo", bank.fingerprint].kept_for == "in use"
    assert verdicts["model", "demo", model.fingerprint].kept_for.endswith("was made from it")
    young = judge_artifacts(store.manifests(), {}, days=1, told_by="former ")
    assert {verdict.kept_for for verdict in young.values()} == {"younger than 1 days"}

    freed = remove(store, verdicts, {}, {})
    assert freed == 2 + 1 + 4 + 1
    assert store.find("table", "demo", old.fingerprint) is None
    for kept in (raw, table, model, bank):
        manifest = kept.manifest
        assert store.open(manifest.asset, "demo", manifest.fingerprint).file("file").exists()
    assert len(list(store.manifests())) == 4


def test_a_damaged_manifest_hides_no_other(tmp_path):
    store = ArtifactStore(root=str(tmp_path), cache=str(tmp_path / "cache"))
    artifact = make(store, "raw", "r")
    broken = make(store, "raw", "s")
    (broken.path / "manifest.json").write_text("{")
    assert [one.fingerprint for one in store.manifests()] == [artifact.fingerprint]


def test_nothing_beside_a_damaged_manifest_goes(store):
    raw = make(store, "raw", "r")
    model = make(store, "model", "m", {"raw": raw.data_version})
    other = make(store, "raw", "r", partition="other")
    if "://" in store.root:
        fs, path = fsspec.core.url_to_fs(f"{store.root}/model/demo/{model.fingerprint}/manifest.json")
        fs.pipe_file(path, b"{")
    else:
        (model.path / "manifest.json").write_text("{")
    damaged = store.survey().damaged
    (named,) = damaged["demo"]
    assert named.endswith(f"model/demo/{model.fingerprint}/manifest.json")
    verdicts = judge_artifacts(store.manifests(), {}, days=0, told_by="former ", damaged=damaged)
    assert verdicts["raw", "demo", raw.fingerprint].kept_for == f"may be needed: {named} is damaged"
    assert not verdicts["raw", "other", other.fingerprint].kept_for


def test_working_folders_stay_while_they_are_young_or_busy(tmp_path):
    for name in ("old", "young", "busy"):
        (tmp_path / "model" / name).mkdir(parents=True)
        (tmp_path / "model" / name / "log.txt").write_text("four")
    for name in ("old", "busy"):
        long_ago = time.time() - 40 * 86_400
        os.utime(tmp_path / "model" / name / "log.txt", (long_ago, long_ago))
    verdicts = judge_work(tmp_path, 30, lambda folder: folder.name == "busy")
    assert {path.name: verdict.kept_for for path, verdict in verdicts.items()} == {
        "busy": "a run is using it",
        "old": "",
        "young": "younger than 30 days",
    }
    store = ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    assert remove(store, {}, {}, verdicts) == 4
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["busy", "young"]
