"""What commands write into the documentation is up to date."""

import subprocess
import sys

import pytest
from places import ROOT

from assets.framework.stage import STAGES
from pipelines.definitions import defs


@pytest.mark.parametrize(
    "command", [["docs/reference.py"], ["-m", "benchmarks.quality.headlines"]], ids=lambda one: one[-1]
)
def test_generated_parts_are_up_to_date(command):
    done = subprocess.run(
        [sys.executable, *command, "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_reference_lists_every_setting_that_the_launchpad_asks_for():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for stage in STAGES.values():
        fields = set(defs.resolve_assets_def(stage.assets[0]).op.config_schema.config_type.fields) - {"force"}
        assert fields == set(stage.settings.model_fields)
        if fields:
            assert f"### {', '.join(f'`{asset}`' for asset in stage.assets)}\n" in page
        assert all(f"| `{field}` |" in page for field in fields)
