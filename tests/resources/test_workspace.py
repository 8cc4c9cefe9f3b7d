"""Where things lie, by data set and by artifact."""

from pathlib import Path

import pytest
from installations import OWN

from rarec.errors import InputError
from resources.workspace import Workspace, known_specs


def workspace(root, **changes):
    places = {"data": "/data", "datasets": str(root), "cache": "/cache", "work": "/work", "ledgers": "/ledgers"}
    return Workspace(**{**places, **changes})


def test_a_training_lies_under_its_asset_and_fingerprint(tmp_path):
    assert workspace(tmp_path).workdir("memory_bank", "abc") == Path("/work/memory_bank/abc")
    assert workspace(tmp_path).hub_cache == Path("/cache/hub")
    assert workspace(tmp_path).ledger("own").folder == Path("/ledgers/own")


@pytest.mark.parametrize(
    ("incoming", "url"),
    [("", "/data/own/incoming"), ("memory://new/", "memory://new/own/incoming"), ("/new", "/new/own/incoming")],
)
def test_new_files_arrive_beside_the_data_or_where_it_is_said(tmp_path, incoming, url):
    assert workspace(tmp_path, incoming=incoming).incoming_files("own").url == url


def test_a_data_set_is_built_in_or_the_users_own(tmp_path):
    built_in = known_specs(tmp_path / "none").specs
    assert {"demo", "ml-100k"} <= built_in.keys()
    (tmp_path / "own.toml").write_text(OWN)
    assert known_specs(tmp_path).specs.keys() == built_in.keys() | {"own"}
    assert workspace(tmp_path).spec("own").title == "Own"
    with pytest.raises(InputError, match="Unknown data set 'none'"):
        workspace(tmp_path).spec("none")


def test_a_data_set_whose_file_is_wrong_says_so_and_others_can_be_used(tmp_path):
    (tmp_path / "own.toml").write_text("name =")
    with pytest.raises(InputError, match=r"own\.toml: not valid TOML: "):
        workspace(tmp_path).spec("own")
    assert workspace(tmp_path).spec("demo").name == "demo"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "datasets").symlink_to("nowhere")
    with pytest.raises(InputError, match="datasets: there is no such folder; it should hold data set files"):
        known_specs(tmp_path / "datasets")
