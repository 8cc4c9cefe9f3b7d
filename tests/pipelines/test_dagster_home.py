"""The embedded Dagster home: made once, brought up to date, and left alone if the user has another."""

import hashlib
import os

import dagster as dg
import pytest
import yaml
from places import ROOT

from pipelines import dagster_home
from pipelines.dagster_home import prepare_dagster_home
from rarec.errors import InputError
from resources.settings import Installation


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return Installation.from_environment({"RAREC_HOME": str(tmp_path)})


def test_dagster_home_is_made_once_and_not_for_one_who_has_it(home, tmp_path, monkeypatch):
    prepare_dagster_home(home)
    assert not home.dagster.exists()
    assert os.environ["DAGSTER_HOME"] == str(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    assert os.environ["DAGSTER_HOME"] == str(home.dagster)
    settings = home.dagster / "dagster.yaml"
    assert yaml.safe_load(settings.read_text())["nux"] == {"enabled": False}
    settings.write_text("telemetry: {enabled: false}\n")
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    assert settings.read_text() == "telemetry: {enabled: false}\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  module: pipelines.launcher\n", "  module: pipelines.run_launcher_local\n"),
        ("  module: 'pipelines.launcher'  # ours\n", "  module: 'pipelines.run_launcher_local'  # ours\n"),
        ("  module: pipelines.launcher_of_mine\n", "  module: pipelines.launcher_of_mine\n"),
        ("  module: my.pipelines.launcher\n", "  module: my.pipelines.launcher\n"),
        ("  module: pipelines.run_launcher_local\n", "  module: pipelines.run_launcher_local\n"),
    ],
)
def test_a_dagster_home_of_an_older_version_is_brought_up_to_date(home, monkeypatch, old, new):
    """The file names a module that has moved; whatever the user has changed in it stays."""
    home.dagster.mkdir(parents=True)
    settings = home.dagster / "dagster.yaml"
    changed_by_user = "# mine: größer\nconcurrency:\n  runs: {max_concurrent_runs: 2}\nrun_launcher:\n"
    settings.write_text(f"{changed_by_user}{old}  class: LocalRunLauncher\n", encoding="utf-8")
    for _ in range(2):
        monkeypatch.delenv("DAGSTER_HOME")
        prepare_dagster_home(home)
        assert settings.read_text(encoding="utf-8") == f"{changed_by_user}{new}  class: LocalRunLauncher\n"
    assert [path.name for path in home.dagster.iterdir()] == ["dagster.yaml"]


def test_a_dagster_yaml_of_an_older_version_that_nobody_changed_becomes_the_present_one(home, monkeypatch):
    home.dagster.mkdir(parents=True)
    old = "telemetry:\n  enabled: false\n"
    monkeypatch.setattr(dagster_home, "OLDER", (hashlib.sha256(old.encode()).hexdigest(),))
    (home.dagster / "dagster.yaml").write_text(old)
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    with dg.DagsterInstance.get() as instance:
        assert instance.run_monitoring_start_timeout_seconds == 900


def test_dagster_starts_on_a_home_of_the_version_before(home, monkeypatch):
    home.dagster.mkdir(parents=True)
    shipped = (ROOT / "pipelines" / "dagster.yaml").read_text()
    (home.dagster / "dagster.yaml").write_text(shipped.replace("pipelines.run_launcher_local", "pipelines.launcher"))
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    with dg.DagsterInstance.get() as instance:
        assert type(instance.run_launcher).__name__ == "LocalRunLauncher"


@pytest.mark.parametrize(("given", "place"), [("dg", "HERE/dg"), ("~/dg", "HERE/dg"), ("./a/../b/dg", "HERE/b/dg")])
def test_a_home_that_dagster_would_refuse_is_made_absolute_and_created(home, tmp_path, monkeypatch, given, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", given)
    wanted = place.replace("HERE", str(tmp_path))
    assert str(prepare_dagster_home(home)) == os.environ["DAGSTER_HOME"] == wanted
    assert (tmp_path / wanted / "dagster.yaml").is_file()
    with dg.DagsterInstance.get() as instance:
        assert instance.root_directory == wanted


def test_a_blank_home_counts_as_unset(home, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", " ")
    assert prepare_dagster_home(home) == home.dagster


def test_a_home_that_cannot_be_used_is_told_in_one_sentence(home, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refused = {
        "file": f"DAGSTER_HOME is {tmp_path}/file, but {tmp_path}/file is not a folder; set DAGSTER_HOME to a folder.",
        "file/dg": f"DAGSTER_HOME is {tmp_path}/file/dg, but {tmp_path}/file is not a folder; set DAGSTER_HOME to a",
        "a?b": f"DAGSTER_HOME: {tmp_path}/a?b contains '?', under which no SQLite database can be opened; choose a",
        "x" * 300: f"DAGSTER_HOME: {tmp_path}/{'x' * 300}: File name too long; correct it or DAGSTER_HOME.",
    }
    for given, message in refused.items():
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / given))
        with pytest.raises(InputError) as caught:
            prepare_dagster_home(home)
        assert str(caught.value).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"telemetry: {", "dagster.yaml is not valid YAML: .*; correct or delete it"),
        ("a: größer\n".encode("latin-1"), "dagster.yaml is not valid UTF-8; save it as UTF-8, or delete it"),
        (None, r"RAREC_HOME: .*dagster\.yaml: Is a directory; correct it or RAREC_HOME"),
    ],
)
def test_a_dagster_yaml_that_cannot_be_read_is_named(home, monkeypatch, content, message):
    settings = home.dagster / "dagster.yaml"
    home.dagster.mkdir()
    settings.mkdir() if content is None else settings.write_bytes(content)
    monkeypatch.delenv("DAGSTER_HOME")
    with pytest.raises(InputError, match=message):
        prepare_dagster_home(home)
    assert "DAGSTER_HOME" not in os.environ


def test_a_dagster_yaml_may_begin_with_a_byte_order_mark(home, monkeypatch):
    home.dagster.mkdir()
    shipped = (ROOT / "pipelines" / "dagster.yaml").read_bytes()
    (home.dagster / "dagster.yaml").write_bytes(b"\xef\xbb\xbf" + shipped)
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    with dg.DagsterInstance.get() as instance:
        assert not instance.telemetry_enabled
