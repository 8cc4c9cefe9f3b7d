"""Folders of models, from this machine or from a hub that is played here."""

import fnmatch
import shutil

import pytest
from model_folders import pickle_weights, save_folder

from rarec.errors import InputError
from rarec.rella.model_folder.fetching import fetch, hash_of

COMMIT = "c" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository, and the names of the files that were downloaded from it."""
    repository, snapshot = tmp_path / "repository", tmp_path / "snapshots" / COMMIT
    save_folder(repository)
    (repository / "training_args.bin").write_bytes(b"no weights")
    (repository / "flax_model.msgpack").write_bytes(b"other weights")

    def download(name, *, revision, cache_dir, allow_patterns, etag_timeout):
        assert (name, revision, cache_dir) == ("toys/tiny", "main", tmp_path)
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in repository.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return repository, tmp_path


def test_safetensors_are_preferred(hub):
    repository, cache = hub
    shutil.copy(repository / "model.safetensors", repository / "pytorch_model.bin")
    folder, revision = fetch("hub:toys/tiny@main", cache)
    assert revision == COMMIT
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def test_pickled_weights_are_fetched_where_there_is_nothing_else(hub):
    repository, cache = hub
    pickle_weights(repository)
    folder, _ = fetch("hub:toys/tiny@main", cache)
    assert {file.name for file in folder.glob("*.bin")} == {"pytorch_model.bin"}


def test_an_adapters_folder_is_told_from_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds an adapter \(adapter_config\.json\), not a language model; name its"):
        fetch(f"path:{tmp_path}")


def test_the_hash_is_that_of_names_and_contents(tmp_path):
    """Fixed: artifacts are pinned by it."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "folder").mkdir()
    assert hash_of(tmp_path) == "ec47a0718a374fdea8a2b30299404ced"
