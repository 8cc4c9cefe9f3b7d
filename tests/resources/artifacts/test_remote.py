"""Remote stores: what is fetched, what is damaged, and stores that are away."""

import errno
import os
import time
from datetime import UTC, datetime

import dagster as dg
import fsspec
import pytest
from artifact_toys import FP, find, write

from resources.artifacts import remote
from resources.artifacts.local import StorageFull
from resources.artifacts.manifest import DamagedArtifact
from resources.artifacts.remote import written_at
from resources.artifacts.store import ArtifactStore


def test_remote_file_is_fetched_once_and_a_broken_copy_is_fetched_again(remote_store, tmp_path):
    write(remote_store)
    reader = ArtifactStore(root=remote_store.root, cache=str(tmp_path / "reader"))
    artifact = find(reader)
    assert not (tmp_path / "reader").exists()  # finding fetches nothing
    path = artifact.file("b.txt")
    assert path.is_relative_to(tmp_path / "reader")
    path.write_text("bad!")
    os.utime(path, ns=(1, 1))
    assert artifact.file("b.txt").read_text() == "same"


def test_damaged_remote_file_is_named_and_rebuilt(remote_store):
    stored = f"{remote_store.root}/memory_bank/demo/{FP}/{write(remote_store).data_version}/b.txt"
    fs, path = fsspec.core.url_to_fs(stored)
    fs.pipe_file(path, b"SAME")
    with pytest.raises(DamagedArtifact, match=r"memory://.*/b\.txt was altered"):
        find(remote_store).file("b.txt")
    fs.rm(path)
    with pytest.raises(DamagedArtifact, match=r"memory://.*/b\.txt is missing"):
        find(remote_store)
    write(remote_store)
    assert find(remote_store).file("b.txt").read_text() == "same"


def test_an_upload_without_manifest_is_not_an_artifact(remote_store, monkeypatch):
    monkeypatch.setattr(remote.RemoteFolder, "write_text", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(ConnectionError):
        write(remote_store)
    assert find(remote_store) is None
    monkeypatch.undo()
    assert write(remote_store).file("b.txt").read_text() == "same"


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
def away(monkeypatch, remote_store):
    """A store in memory before which `Away` stands."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    real = fsspec.core.url_to_fs

    def stand_before(name, times):
        fs = Away(real(remote_store.root)[0], name, times)
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (fs, real(url)[1]))
        return fs

    return remote_store, stand_before, slept


@pytest.mark.parametrize("call", ["cat_file", "makedirs", "put_file", "pipe_file", "info", "get_file"])
def test_a_remote_store_that_is_away_is_waited_for(away, caplog, call):
    store, stand_before, slept = away
    caplog.set_level("INFO", logger="rarec.progress")
    fs = stand_before(call, 3)
    assert write(store).file("vectors/a.txt").read_text() == "hello"
    assert find(store).file("b.txt").read_text() == "same"
    assert fs.times == 0
    assert slept == [remote.LOOK_AGAIN_S] * 3
    (told,) = caplog.messages
    assert "is away (could not connect to the endpoint); waiting for it at most 120 s" in told


def test_a_remote_store_that_stays_away_fails_the_asset_and_shows_nothing_half_written(away, monkeypatch):
    store, stand_before, _ = away
    fs = stand_before("pipe_file", 10_000)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(dg.Failure, match=r"did not answer for 120 s: memory://.*RuntimeError: could not") as failure:
        write(store)
    assert failure.value.allow_retries  # of a training: from its checkpoint
    assert now[0] == 120
    fs.times = 0
    assert find(store) is None
    assert write(store).file("b.txt").read_text() == "same"


@pytest.mark.parametrize("error", [PermissionError("no"), ValueError("wrong"), OSError(errno.ENOSPC, "No space left")])
def test_errors_that_no_waiting_mends_are_raised_at_once(away, error):
    store, stand_before, slept = away
    fs = stand_before("", 0)

    def refuse(*_):
        raise error

    fs.put_file = refuse
    with pytest.raises((type(error), StorageFull)):
        write(store)
    assert slept == []


@pytest.mark.parametrize(
    ("info", "at"),
    [
        ({"LastModified": datetime(2026, 1, 1, tzinfo=UTC)}, datetime(2026, 1, 1, tzinfo=UTC).timestamp()),
        ({"mtime": 5.5, "created": 7.0}, 5.5),
        ({"created": 7}, 7.0),
        ({"mtime": "yesterday"}, None),
        ({"size": 3}, None),
    ],
)
def test_when_a_file_was_written_if_its_file_system_reports_it(info, at):
    assert written_at(info) == at
