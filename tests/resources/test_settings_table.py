"""The table in the documentation says what a fresh installation does."""

import re

from places import ROOT

from resources.settings import Installation
from resources.settings_table import settings_table

ROWS = {row.name: row for row in settings_table()}


def test_every_variable_has_a_type_a_default_and_a_sentence():
    assert len(ROWS) == len(settings_table()) >= 30
    for name, row in ROWS.items():
        assert re.fullmatch(r"(RAREC|MLFLOW|DAGSTER)_[A-Z_]+", name)
        assert row.type
        assert row.default
        assert row.description.endswith(".")


def test_examples():
    shown = {name: (row.type, row.default) for name, row in ROWS.items()}
    assert shown["RAREC_HOME"] == ("folder", ".rarec in the checkout")
    assert shown["RAREC_DATA"] == ("folder", "RAREC_HOME/data")
    assert shown["MLFLOW_TRACKING_URI"] == ("URL", "sqlite:///RAREC_HOME/mlflow/mlflow.db")
    assert shown["MLFLOW_UI_URL"] == ("URL", "http://127.0.0.1:5000")
    assert shown["RAREC_SCHEDULED"] == ("names, separated by commas", "demo")
    assert shown["RAREC_NODES"] == ("whole number, at least 1", "1")
    assert shown["RAREC_PRECISION"] == ("`fp32`, `bf16`, `fp16`", "fp32")
    assert shown["RAREC_OFFLOAD"] == ("true or false", "false")
    assert shown["RAREC_DEEPSPEED"] == ("JSON file", "none")


def test_a_default_that_is_set_changes_nothing(tmp_path):
    """Each shown default, as a user would copy it from the table."""
    home = {"RAREC_HOME": str(tmp_path)}
    unset = Installation.from_environment(home)
    given = {name: row.default.replace("RAREC_HOME", str(tmp_path)) for name, row in ROWS.items()}
    given = {name: value for name, value in given.items() if value != "none"}
    assert Installation.from_environment(given | home).model_dump() == unset.model_dump()


def test_only_the_settings_read_rarecs_variables():
    """Else a variable would be missing from the table."""
    for package in ("assets", "resources", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "settings.py":
                found = re.findall(r"(?:environ\.get\(|environ\[|getenv\()\"(RAREC_\w+)", path.read_text())
                assert found == [], path
