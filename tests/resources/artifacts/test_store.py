"""What a store promises, wherever it keeps its artifacts."""

import errno
import os

import pytest
from artifact_toys import CONFIG, FP, INPUTS, OTHER, OTHER_FP, draft, find, write

from rarec.errors import InputError
from resources.artifacts.local import StorageFull
from resources.artifacts.manifest import DamagedArtifact


def write_and_fail(store, name, error, config=CONFIG):
    with draft(store, config, replace=True) as one:
        (one.path / name).write_bytes(bytes(1000))
        raise error


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

    for config in (CONFIG, OTHER):
        with pytest.raises(RuntimeError, match="boom"):
            write_and_fail(store, "x", RuntimeError("boom"), config)
    assert find(store, OTHER_FP) is None
    assert find(store).file("vectors/a.txt").read_text() == "hello"
    assert [p for folder in tmp_path.rglob(".staging") for p in folder.iterdir()] == []


def test_draft_gives_the_artifact_only_after_commit(local_store):
    with draft(local_store) as one:
        (one.path / "x").write_text("x")
        with pytest.raises(RuntimeError, match="committed when"):
            _ = one.artifact
    assert one.artifact.file("x").read_text() == "x"


def test_second_writer_keeps_the_first_unless_it_replaces(store):
    write(store, "first")
    assert write(store, "second").file("vectors/a.txt").read_text() == "first"
    assert write(store, "third", replace=True).file("vectors/a.txt").read_text() == "third"
    assert find(store).file("vectors/a.txt").read_text() == "third"


@pytest.mark.parametrize("damage", ["altered", "shorter", "missing", "manifest", "manifest gone", "metadata"])
def test_damaged_local_artifact_is_named_and_rebuilt(local_store, damage):
    folder = write(local_store).path
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
        find(local_store)
    assert str(expected) in str(error.value)
    assert "force" in str(error.value)
    assert write(local_store).file("vectors/a.txt").read_text() == "hello"
    assert find(local_store) is not None


def test_reading_verifies_only_the_file_asked_for(local_store):
    folder = write(local_store).path
    (folder / "b.txt").write_text("SAME")
    os.utime(folder / "b.txt", ns=(1, 1))
    artifact = local_store.open("memory_bank", "demo", FP)
    assert artifact.file("vectors/a.txt").read_text() == "hello"
    with pytest.raises(DamagedArtifact, match=r"b\.txt was altered"):
        artifact.file("b.txt")
    with pytest.raises(InputError, match=r"no file '\.\./x'; its files are: b\.txt, vectors/a\.txt"):
        artifact.file("../x")


@pytest.mark.parametrize("name", ["", "Demo", "../demo", "a/b", ".demo", "démo", "demo\n"])
def test_names_that_do_not_fit_a_path_are_refused(local_store, name):
    with pytest.raises(InputError, match="cannot be used as partition name: use lower-case"):
        local_store.find("memory_bank", name, FP)
    with pytest.raises(InputError, match="cannot be used as asset name"):
        local_store.find(name, "demo", FP)


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


def test_a_fingerprint_that_belongs_to_other_inputs_is_refused(local_store):
    with pytest.raises(ValueError, match="was not made from"):
        local_store.write("memory_bank", "demo", FP, inputs={}, config=CONFIG, code_version="1").__enter__()


def test_a_removed_artifact_is_gone_and_the_others_stay(store):
    write(store)
    write(store, config=OTHER)
    store.remove("memory_bank", "demo", FP)
    assert find(store) is None
    assert find(store, OTHER_FP).file("b.txt").read_text() == "same"
    assert [one.fingerprint for one in store.manifests()] == [OTHER_FP]
