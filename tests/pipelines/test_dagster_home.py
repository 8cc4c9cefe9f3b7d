"""The embedded Dagster home: made once, brought up to date, and left alone if the user has another."""

import os

import dagster as dg
import pytest
import yaml
from places import ROOT

from pipelines.dagster_home import prepare_dagster_home
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


def test_dagster_starts_on_a_home_of_the_version_before(home, monkeypatch):
    home.dagster.mkdir(parents=True)
    shipped = (ROOT / "pipelines" / "dagster.yaml").read_text()
    (home.dagster / "dagster.yaml").write_text(shipped.replace("pipelines.run_launcher_local", "pipelines.launcher"))
    monkeypatch.delenv("DAGSTER_HOME")
    prepare_dagster_home(home)
    with dg.DagsterInstance.get() as instance:
        assert type(instance.run_launcher).__name__ == "LocalRunLauncher"
