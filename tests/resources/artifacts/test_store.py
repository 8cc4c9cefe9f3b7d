import errno
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import dagster as dg
import fsspec
import numpy as np
import pytest

from rarec.errors import InputError
from resources.artifacts import store as artifacts
from resources.artifacts.store import ArtifactStore, DamagedArtifact, StorageFull, canonical_json, fingerprint

CONFIG = {"k": 10, "split": {"seed": 1}}
INPUTS = {"interactions": "abc"}
FP = fingerprint("memory_bank", "1", CONFIG, INPUTS)


@pytest.fixture(params=["local", "file url", "remote"])
def store(request, tmp_path):
    root = {
        "local": str(tmp_path / "store"),
        "file url": f"file://{tmp_path / 'store'}",
        "remote": f"memory://{uuid.uuid4().hex}",
    }[request.param]
    return ArtifactStore(root=root, cache=str(tmp_path / "cache"))


@pytest.fixture
def local(tmp_path):
    return ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))


def write(store, content="hello", replace=False, config=CONFIG, metadata=None):
    fp = fingerprint("memory_bank", "1", config, INPUTS)
    with store.write(
        "memory_bank", "demo", fp, inputs=INPUTS, config=config, code_version="1", replace=replace
    ) as draft:
        (draft.path / "vectors").mkdir()
        (draft.path / "vectors" / "a.txt").write_text(content)
        (draft.path / "b.txt").write_text("same")
        draft.metadata.update(metadata or {"rows": 3})
    return draft.artifact


def write_and_fail(store, name, error, fp=FP, config=CONFIG):
    with store.write("memory_bank", "demo", fp, inputs=INPUTS, config=config, code_version="1", replace=True) as draft:
        (draft.path / name).write_bytes(bytes(1000))
        raise error


def find(store):
    return store.find("memory_bank", "demo", FP)


def test_fingerprint_depends_on_each_part_and_not_on_order():
    assert len(FP) == 32
    assert fingerprint("memory_bank", "1", {"split": {"seed": 1}, "k": 10}, INPUTS) == FP
    others = {
        fingerprint("item_index", "1", CONFIG, INPUTS),
        fingerprint("memory_bank", "2", CONFIG, INPUTS),
        fingerprint("memory_bank", "1", {**CONFIG, "k": 11}, INPUTS),
        fingerprint("memory_bank", "1", CONFIG, {"interactions": "abd"}),
        fingerprint("memory_bank", "1", CONFIG, {"user_sequences": "abc"}),
    }
    assert len(others | {FP}) == 6


def test_canonical_json_is_stable_over_a_round_trip_and_refuses_nan():
    value = {10: "a", 9: ("x", 1.5)}
    assert canonical_json(value) == '{"10":"a","9":["x",1.5]}'
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})
    with pytest.raises(TypeError):
        canonical_json({"a": object()})


def test_written_artifact_is_found_and_read_back(store):
    assert find(store) is None
    written = write(store)
    found = find(store)
    assert found.fingerprint == written.fingerprint == FP
    assert found.metadata == {"rows": 3}
    assert found.manifest.config == CONFIG
    assert found.manifest.inputs == INPUTS
    assert found.manifest.code_version == "1"
    assert found.file("vectors/a.txt").read_text() == "hello"
    assert sorted(p.name for p in found.path.iterdir() if p.name != "manifest.json") == ["b.txt", "vectors"]
    assert store.open("memory_bank", "demo", FP).data_version == written.data_version


def test_equal_content_has_equal_data_version_whatever_it_was_made_from(store):
    one = write(store)
    two = write(store, config={**CONFIG, "k": 11}, metadata={"other": 1})
    three = write(store, content="changed", config={**CONFIG, "k": 12})
    assert one.fingerprint != two.fingerprint
    assert one.data_version == two.data_version != three.data_version


def test_open_of_an_absent_artifact_says_what_to_materialise(store):
    with pytest.raises(
        InputError, match=r"no artifact .*memory_bank/demo/.*; materialise memory_bank for partition demo"
    ):
        store.open("memory_bank", "demo", FP)


def test_exception_leaves_nothing_and_existing_artifacts_untouched(store, tmp_path):
    write(store)

    def fail(fp, config):
        with pytest.raises(RuntimeError, match="boom"):
            write_and_fail(store, "x", RuntimeError("boom"), fp, config)

    fail(FP, CONFIG)
    other = {**CONFIG, "k": 11}
    other_fp = fingerprint("memory_bank", "1", other, INPUTS)
    fail(other_fp, other)
    assert store.find("memory_bank", "demo", other_fp) is None
    assert find(store).file("vectors/a.txt").read_text() == "hello"
    assert [p for folder in tmp_path.rglob(".staging") for p in folder.iterdir()] == []


def test_draft_gives_the_artifact_only_after_commit(local):
    with local.write("memory_bank", "demo", FP, inputs=INPUTS, config=CONFIG, code_version="1") as draft:
        (draft.path / "x").write_text("x")
        with pytest.raises(RuntimeError, match="committed when"):
            _ = draft.artifact
    assert draft.artifact.file("x").read_text() == "x"


def test_second_writer_keeps_the_first_unless_it_replaces(store):
    write(store, "first")
    assert write(store, "second").file("vectors/a.txt").read_text() == "first"
    assert write(store, "third", replace=True).file("vectors/a.txt").read_text() == "third"
    assert find(store).file("vectors/a.txt").read_text() == "third"


@pytest.mark.parametrize("damage", ["altered", "shorter", "missing", "manifest", "manifest gone", "metadata"])
def test_damaged_local_artifact_is_named_and_rebuilt(local, damage):
    folder = write(local).path
    file, manifest = folder / "vectors" / "a.txt", folder / "manifest.json"
    expected = file
    if damage == "altered":
        file.write_text("jello")
        os.utime(file, ns=(1, 1))
    elif damage == "shorter":
        file.write_text("hell")
    elif damage == "missing":
        file.unlink()
    else:
        expected = manifest
        if damage == "manifest":
            manifest.write_text(manifest.read_text()[:-20])
        elif damage == "manifest gone":
            manifest.unlink()
        else:
            manifest.write_text(manifest.read_text().replace('"rows": 3', '"rows": 4'))
    with pytest.raises(DamagedArtifact) as error:
        find(local)
    assert str(expected) in str(error.value)
    assert "force" in str(error.value)
    assert write(local).file("vectors/a.txt").read_text() == "hello"
    assert find(local) is not None


def test_reading_verifies_only_the_file_asked_for(local):
    folder = write(local).path
    (folder / "b.txt").write_text("SAME")
    os.utime(folder / "b.txt", ns=(1, 1))
    artifact = local.open("memory_bank", "demo", FP)
    assert artifact.file("vectors/a.txt").read_text() == "hello"
    with pytest.raises(DamagedArtifact, match=r"b\.txt was altered"):
        artifact.file("b.txt")
    with pytest.raises(InputError, match=r"no file '\.\./x'; its files are: b\.txt, vectors/a\.txt"):
        artifact.file("../x")


def test_each_file_is_hashed_once_per_process(local, monkeypatch):
    write(local)
    hashed = []
    digest = artifacts._digest
    monkeypatch.setattr(artifacts, "_digest", lambda stream: hashed.append(stream.name) or digest(stream))
    monkeypatch.setattr(artifacts, "_verified", {})
    for _ in range(3):
        _ = find(local).path
    assert len(hashed) == 2


def test_remote_file_is_fetched_once_and_a_broken_copy_is_fetched_again(tmp_path):
    root = f"memory://{uuid.uuid4().hex}"
    write(ArtifactStore(root=root, cache=str(tmp_path / "writer")))
    reader = ArtifactStore(root=root, cache=str(tmp_path / "reader"))
    artifact = find(reader)
    assert not (tmp_path / "reader").exists()  # finding fetches nothing
    path = artifact.file("b.txt")
    assert path.is_relative_to(tmp_path / "reader")
    path.write_text("bad!")
    os.utime(path, ns=(1, 1))
    assert artifact.file("b.txt").read_text() == "same"


def test_damaged_remote_file_is_named_and_rebuilt(tmp_path):
    store = ArtifactStore(root=f"memory://{uuid.uuid4().hex}", cache=str(tmp_path / "cache"))
    stored = f"{store.root}/memory_bank/demo/{FP}/{write(store).data_version}/b.txt"
    fs, path = fsspec.core.url_to_fs(stored)
    fs.pipe_file(path, b"SAME")
    with pytest.raises(DamagedArtifact, match=r"memory://.*/b\.txt was altered"):
        find(store).file("b.txt")
    fs.rm(path)
    with pytest.raises(DamagedArtifact, match=r"memory://.*/b\.txt is missing"):
        find(store)
    write(store)
    assert find(store).file("b.txt").read_text() == "same"


def test_remote_upload_without_manifest_is_not_an_artifact(tmp_path, monkeypatch):
    store = ArtifactStore(root=f"memory://{uuid.uuid4().hex}", cache=str(tmp_path / "cache"))
    monkeypatch.setattr(artifacts._Remote, "write_text", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(ConnectionError):
        write(store)
    assert find(store) is None
    monkeypatch.undo()
    assert write(store).file("b.txt").read_text() == "same"


class Away:
    """Stands before a file system: one kind of call fails so many times before it goes through."""

    def __init__(self, fs, name, times):
        self._fs, self._name, self.times = fs, name, times

    def __getattr__(self, name):
        def call(*arguments, **options):
            if name == self._name and self.times > 0:
                self.times -= 1
                raise RuntimeError("could not connect to the endpoint")  # botocore's errors are no OSErrors
            return getattr(self._fs, name)(*arguments, **options)

        return call


@pytest.fixture
def away(monkeypatch, tmp_path):
    """A store in memory before which `Away` stands."""
    slept = []
    monkeypatch.setattr(artifacts.time, "sleep", slept.append)
    store = ArtifactStore(root=f"memory://{uuid.uuid4().hex}", cache=str(tmp_path / "cache"))
    real = fsspec.core.url_to_fs

    def stand_before(name, times):
        fs = Away(real(store.root)[0], name, times)
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (fs, real(url)[1]))
        return fs

    return store, stand_before, slept


@pytest.mark.parametrize("call", ["cat_file", "makedirs", "put_file", "pipe_file", "info", "get_file"])
def test_a_remote_store_that_is_away_is_waited_for(away, caplog, call):
    store, stand_before, slept = away
    caplog.set_level("INFO", logger="rarec.progress")
    fs = stand_before(call, 3)
    assert write(store).file("vectors/a.txt").read_text() == "hello"
    assert find(store).file("b.txt").read_text() == "same"
    assert fs.times == 0
    assert slept == [artifacts.LOOK_AGAIN_S] * 3
    (told,) = caplog.messages
    assert "is away (could not connect to the endpoint); waiting for it at most 120 s" in told


def test_a_remote_store_that_stays_away_fails_the_asset_and_shows_nothing_half_written(away, monkeypatch):
    store, stand_before, _ = away
    fs = stand_before("pipe_file", 10_000)
    now = [0.0]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(artifacts.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(dg.Failure, match=r"did not answer for 120 s: memory://.*RuntimeError: could not") as failure:
        write(store)
    assert failure.value.allow_retries  # of a training: from its checkpoint
    assert now[0] == 120
    fs.times = 0
    assert find(store) is None
    assert write(store).file("b.txt").read_text() == "same"


@pytest.mark.parametrize("error", [PermissionError("no"), ValueError("wrong"), OSError(errno.ENOSPC, "No space left")])
def test_what_no_waiting_mends_is_told_at_once(away, monkeypatch, error):
    store, stand_before, slept = away
    fs = stand_before("", 0)

    def refuse(*_):
        raise error

    fs.put_file = refuse
    with pytest.raises((type(error), StorageFull)):
        write(store)
    assert slept == []


@pytest.mark.parametrize("name", ["", "Demo", "../demo", "a/b", ".demo", "démo", "demo\n"])
def test_names_that_do_not_fit_a_path_are_refused(local, name):
    with pytest.raises(InputError, match="cannot be used as partition name: use lower-case"):
        local.find("memory_bank", name, FP)
    with pytest.raises(InputError, match="cannot be used as asset name"):
        local.find(name, "demo", FP)


def test_wrong_fingerprint_empty_draft_links_and_manifest_are_refused(local, tmp_path):
    with pytest.raises(ValueError, match="was not made from"):
        local.write("memory_bank", "demo", FP, inputs={}, config=CONFIG, code_version="1").__enter__()

    def attempt(fill):
        with local.write("memory_bank", "demo", FP, inputs=INPUTS, config=CONFIG, code_version="1") as draft:
            fill(draft.path)

    with pytest.raises(ValueError, match="at least one"):
        attempt(lambda path: None)
    with pytest.raises(ValueError, match="link is not a plain file"):
        attempt(lambda path: (path / "link").symlink_to(tmp_path))
    with pytest.raises(ValueError, match="another name"):
        attempt(lambda path: (path / "manifest.json").write_text("{}"))
    assert find(local) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("120 requested and 0 written"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_gives_one_clear_error_and_loses_nothing(store, error):
    write(store)
    with pytest.raises(StorageFull, match=r"Disk full while writing x\.npy of artifact .*: 1,000 bytes were staged"):
        write_and_fail(store, "x.npy", error)
    assert find(store).file("vectors/a.txt").read_text() == "hello"


def test_a_real_file_size_limit_is_reported_as_full_disk(local):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with (
            pytest.raises(StorageFull, match=r"while writing x\.npy"),
            local.write("memory_bank", "demo", FP, inputs=INPUTS, config=CONFIG, code_version="1") as draft,
        ):
            np.save(draft.path / "x.npy", np.zeros(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert find(local) is None


def race(root, cache, content, barrier):
    store = ArtifactStore(root=root, cache=cache)
    with store.write("memory_bank", "demo", FP, inputs=INPUTS, config=CONFIG, code_version="1") as draft:
        (draft.path / "x").write_text(content)
        barrier.wait(20)
    (Path(cache) / f"seen-{content}").write_text(draft.artifact.file("x").read_text())


def test_processes_that_write_the_same_fingerprint_agree_on_one(local):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    Path(local.cache).mkdir(exist_ok=True)
    writers = [
        context.Process(target=race, args=(local.root, local.cache, str(number), barrier)) for number in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    seen = {(Path(local.cache) / f"seen-{number}").read_text() for number in range(3)}
    assert seen == {find(local).file("x").read_text()}  # what was committed first stays
    assert list((Path(local.root) / ".staging").iterdir()) == []


def test_staging_of_a_killed_writer_is_removed_and_that_of_a_living_one_kept(local):
    script = (
        "import os, signal, sys\n"
        "from resources.artifacts.store import ArtifactStore\n"
        f"store = ArtifactStore(root={local.root!r}, cache={local.cache!r})\n"
        f"made_from = dict(inputs={INPUTS!r}, config={CONFIG!r}, code_version='1')\n"
        f"with store.write('memory_bank', 'demo', {FP!r}, **made_from) as d:\n"
        "    (d.path / 'x').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    staging = Path(local.root) / ".staging"
    assert len(list(staging.glob("*/x"))) == 1
    (foreign,) = (path for path in staging.iterdir() if path.is_dir())
    artifacts._lock_path(foreign).rename(foreign.with_name("job-1@elsewhere.lock"))
    foreign = foreign.rename(foreign.with_name("job-1@elsewhere"))
    assert find(local) is None

    with local.write("memory_bank", "demo", FP, inputs=INPUTS, config=CONFIG, code_version="1") as living:
        (living.path / "x").write_text("x")
        other = {**CONFIG, "k": 1}
        write(local, config=other)  # cleans up on its way
        assert living.path.is_dir()
        assert foreign.is_dir()
    assert find(local) is not None
    assert sorted(path.name for path in staging.iterdir()) == ["job-1@elsewhere", "job-1@elsewhere.lock"]
    os.utime(foreign.with_name("job-1@elsewhere.lock"), (0, 0))
    write(local, replace=True)
    assert list(staging.iterdir()) == []


def kill_a_rebuild_between_its_renames(store):
    script = (
        "import os, signal\n"
        "from resources import artifacts\n"
        f"store = artifacts.ArtifactStore(root={store.root!r}, cache={store.cache!r})\n"
        "rename = artifacts._rename\n"
        "def rename_and_die(source, target):\n"
        "    rename(source, target)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "artifacts._rename = rename_and_die\n"
        f"made_from = dict(inputs={INPUTS!r}, config={CONFIG!r}, code_version='1')\n"
        f"with store.write('memory_bank', 'demo', {FP!r}, **made_from, replace=True) as draft:\n"
        "    (draft.path / 'x').write_text('new')\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    place = Path(store.root.removeprefix("file://")) / "memory_bank" / "demo" / FP
    assert not place.exists()
    return place


@pytest.mark.parametrize("look", ["find", "open", "manifests", "with_content", "write another"])
def test_what_a_killed_rebuild_had_moved_aside_is_put_back(local, look):
    before = write(local, "intact")
    place = kill_a_rebuild_between_its_renames(local)
    if look == "manifests":
        assert [one.fingerprint for one in local.manifests()] == [FP]
    elif look == "with_content":
        assert local.with_content("memory_bank", "demo", before.data_version, []) is not None
    elif look == "write another":
        write(local, config={**CONFIG, "k": 11})
    else:
        assert getattr(local, look)("memory_bank", "demo", FP) is not None
    assert place.is_dir()
    assert find(local).file("vectors/a.txt").read_text() == "intact"
    assert list((Path(local.root) / ".staging").iterdir()) == []


def test_what_a_killed_rebuild_had_moved_aside_never_displaces_what_was_made_since(local):
    write(local, "intact")
    place = kill_a_rebuild_between_its_renames(local)
    place.mkdir()  # as if another machine had been faster, whose staging is of no concern here
    (place / "manifest.json").write_text("{")
    write(local, config={**CONFIG, "k": 11})
    assert (place / "manifest.json").read_text() == "{"
    assert list((Path(local.root) / ".staging").iterdir()) == []


def test_a_lock_that_its_writer_is_about_to_take_stays(local):
    staging = Path(local.root) / ".staging"
    write(local)
    folders = {age_s: staging / f"job-{age_s}@{socket.gethostname()}" for age_s in (1, 100)}
    for age_s, folder in folders.items():
        lock = artifacts._lock_path(folder)
        lock.touch()
        os.utime(lock, (time.time() - age_s, time.time() - age_s))
    assert list(local.manifests())
    assert list(staging.iterdir()) == [artifacts._lock_path(folders[1])]


def test_an_interrupt_between_the_renames_leaves_the_artifact_where_it_was(local, monkeypatch):
    write(local, "intact")
    rename = artifacts._rename

    def interrupted(source, target):
        monkeypatch.setattr(artifacts, "_rename", rename)
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "_rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(local, "new", replace=True)
    assert find(local).file("vectors/a.txt").read_text() == "intact"
    assert list((Path(local.root) / ".staging").iterdir()) == []
