"""Running a script of `benchmarks/peers` in its own environment, through Dagster Pipes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.framework.stage import Request
from rarec.errors import InputError

COSTS = "costs.json"  # what the trainings of an artifact took
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "peers"


def require_peers(request: Request[Any]) -> None:
    """Check that the environment of the peers has been built.

    Raises:
        InputError: It has not.
    """
    python = request.workspace.peers_python
    if not python.is_file():
        raise InputError(f"there is no environment of the peers ({python}); build it with `make peers`")


def run_peer(request: Request[Any], script: str, given: Mapping[str, Any], output: Path) -> None:
    """Run a script with what is ``given``; its log goes to Dagster, its files to ``output``, which is made."""
    output.mkdir()
    job = output / "job.json"
    job.write_text(json.dumps(given))
    command = [str(request.workspace.peers_python), str(SCRIPTS / script), str(job)]
    dg.PipesSubprocessClient().run(command=command, context=request.context)
    job.unlink()
