"""The embedded Dagster home, which `make run` and `make ui` share."""

import os
import re
from pathlib import Path

from resources.settings import Installation

LAUNCHER = "pipelines.run_launcher_local"
OLD_LAUNCHER = re.compile(r"(\bmodule:\s*[\"']?)pipelines\.launcher(?![\w.])")  # what older versions call it


def prepare_dagster_home(installation: Installation) -> None:
    """Create the embedded home and point DAGSTER_HOME to it. If DAGSTER_HOME is set already, nothing is done.

    A dagster.yaml that is already there keeps the user's changes. Only the old name of our run launcher is replaced.
    """
    if os.environ.get("DAGSTER_HOME"):
        return
    installation.dagster.mkdir(parents=True, exist_ok=True)
    settings = (installation.dagster / "dagster.yaml").resolve()  # a link stays one
    if settings.exists():
        text = settings.read_text(encoding="utf-8")
        current = OLD_LAUNCHER.sub(rf"\g<1>{LAUNCHER}", text)
    else:
        text, current = "", (Path(__file__).parent / "dagster.yaml").read_text(encoding="utf-8")
    if current != text:  # whole or not at all: another process may be reading it
        beside = settings.with_name(f".dagster.yaml.{os.getpid()}")
        beside.write_text(current, encoding="utf-8")
        beside.replace(settings)
    os.environ["DAGSTER_HOME"] = str(installation.dagster)
