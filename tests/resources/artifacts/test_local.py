"""Writers that die, race or meet a full disk."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from artifact_toys import CONFIG, FP, INPUTS, OTHER, draft, find, write
from places import HELPERS, child_environment

from resources.artifacts import local
from resources.artifacts.local import StorageFull


def staging(store):
    return Path(store.root.removeprefix("file://")) / ".staging"


def killed_writer(store, code, replace=False):
    """Write in a process of its own, which kills itself."""
    script = (
        "import os, signal\n"
        "from resources.artifacts import local\n"
        "from resources.artifacts.store import ArtifactStore\n"
        f"store = ArtifactStore(root={store.root!r}, cache={store.cache!r})\n"
        f"made_from = dict(inputs={INPUTS!r}, config={CONFIG!r}, code_version='1', replace={replace})\n"
        f"{code}"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL


def test_each_file_is_hashed_once_per_process(local_store, monkeypatch):
    write(local_store)
    hashed = []
    digest = local._digest
    monkeypatch.setattr(local, "_digest", lambda stream: hashed.append(stream.name) or digest(stream))
    monkeypatch.setattr(local, "_verified", {})
    for _ in range(3):
        _ = find(local_store).path
    assert len(hashed) == 2


def test_empty_drafts_links_and_manifests_are_refused(local_store, tmp_path):
    def attempt(fill):
        with draft(local_store) as one:
            fill(one.path)

    with pytest.raises(ValueError, match="at least one"):
        attempt(lambda path: None)
    with pytest.raises(ValueError, match="link is not a plain file"):
        attempt(lambda path: (path / "link").symlink_to(tmp_path))
    with pytest.raises(ValueError, match="another name"):
        attempt(lambda path: (path / "manifest.json").write_text("{}"))
    assert find(local_store) is None


def test_a_real_file_size_limit_is_reported_as_full_disk(local_store):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageFull, match=r"while writing x\.npy"), draft(local_store) as one:
            np.save(one.path / "x.npy", np.zeros(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert find(local_store) is None


RACE = """
import sys
from pathlib import Path

from artifact_toys import draft
from waiting import wait_for

from resources.artifacts.store import ArtifactStore

root, cache, content = sys.argv[1:]
with draft(ArtifactStore(root=root, cache=cache)) as one:
    (one.path / "x").write_text(content)
    Path(cache, f"ready-{content}").touch()
    wait_for(lambda: len(list(Path(cache).glob("ready-*"))) == 3, 100, "the other writers")
Path(cache, f"seen-{content}").write_text(one.artifact.file("x").read_text())
"""


def test_processes_that_write_the_same_fingerprint_agree_on_one(local_store):
    cache = Path(local_store.cache)
    cache.mkdir(exist_ok=True)
    command = [sys.executable, "-c", RACE, local_store.root, local_store.cache]
    writers = [subprocess.Popen([*command, str(number)], env=child_environment(HELPERS)) for number in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    seen = {(cache / f"seen-{number}").read_text() for number in range(3)}
    assert seen == {find(local_store).file("x").read_text()}  # what was committed first stays
    assert list(staging(local_store).iterdir()) == []


def test_staging_of_a_killed_writer_is_removed_and_that_of_a_living_one_kept(local_store):
    killed_writer(
        local_store,
        f"with store.write('memory_bank', 'demo', {FP!r}, **made_from) as draft:\n"
        "    (draft.path / 'x').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    folder = staging(local_store)
    assert len(list(folder.glob("*/x"))) == 1
    (foreign,) = (path for path in folder.iterdir() if path.is_dir())
    local._lock_path(foreign).rename(foreign.with_name("job-1@elsewhere.lock"))
    foreign = foreign.rename(foreign.with_name("job-1@elsewhere"))
    assert find(local_store) is None

    with draft(local_store) as living:
        (living.path / "x").write_text("x")
        write(local_store, config=OTHER)  # cleans up on its way
        assert living.path.is_dir()
        assert foreign.is_dir()
    assert find(local_store) is not None
    assert sorted(path.name for path in folder.iterdir()) == ["job-1@elsewhere", "job-1@elsewhere.lock"]
    os.utime(foreign.with_name("job-1@elsewhere.lock"), (0, 0))
    write(local_store, replace=True)
    assert list(folder.iterdir()) == []


def kill_a_rebuild_between_its_renames(store):
    killed_writer(
        store,
        "rename = local._rename\n"
        "def rename_and_die(source, target):\n"
        "    rename(source, target)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "local._rename = rename_and_die\n"
        f"with store.write('memory_bank', 'demo', {FP!r}, **made_from) as draft:\n"
        "    (draft.path / 'x').write_text('new')\n",
        replace=True,
    )
    place = Path(store.root) / "memory_bank" / "demo" / FP
    assert not place.exists()
    return place


@pytest.mark.parametrize("look", ["find", "open", "manifests", "with_content", "write another"])
def test_an_artifact_that_a_killed_rebuild_had_moved_aside_is_put_back(local_store, look):
    before = write(local_store, "intact")
    place = kill_a_rebuild_between_its_renames(local_store)
    if look == "manifests":
        assert [one.fingerprint for one in local_store.manifests()] == [FP]
    elif look == "with_content":
        assert local_store.with_content("memory_bank", "demo", before.data_version, []) is not None
    elif look == "write another":
        write(local_store, config=OTHER)
    else:
        assert getattr(local_store, look)("memory_bank", "demo", FP) is not None
    assert place.is_dir()
    assert find(local_store).file("vectors/a.txt").read_text() == "intact"
    assert list(staging(local_store).iterdir()) == []


def test_an_artifact_that_a_killed_rebuild_had_moved_aside_never_displaces_a_newer_one(local_store):
    write(local_store, "intact")
    place = kill_a_rebuild_between_its_renames(local_store)
    place.mkdir()  # as if another machine had been faster, whose staging does not matter here
    (place / "manifest.json").write_text("{")
    write(local_store, config=OTHER)
    assert (place / "manifest.json").read_text() == "{"
    assert list(staging(local_store).iterdir()) == []


def test_a_lock_that_its_writer_is_about_to_take_stays(local_store):
    write(local_store)
    folders = {age_s: staging(local_store) / f"job-{age_s}@{socket.gethostname()}" for age_s in (1, 100)}
    for age_s, folder in folders.items():
        lock = local._lock_path(folder)
        lock.touch()
        os.utime(lock, (time.time() - age_s, time.time() - age_s))
    assert list(local_store.manifests())
    assert list(staging(local_store).iterdir()) == [local._lock_path(folders[1])]


def test_an_interrupt_between_the_renames_leaves_the_artifact_where_it_was(local_store, monkeypatch):
    write(local_store, "intact")
    rename = local._rename

    def interrupted(source, target):
        monkeypatch.setattr(local, "_rename", rename)
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(local_store, "new", replace=True)
    assert find(local_store).file("vectors/a.txt").read_text() == "intact"
    assert list(staging(local_store).iterdir()) == []
