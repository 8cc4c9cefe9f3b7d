"""Where the tests find this repository's files."""

import os
from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent


def child_environment(*places: Path, **more: str) -> dict[str, str]:
    """This process's environment for a child that imports from these places and from this repository."""
    return {**os.environ, "PYTHONPATH": ":".join(map(str, (*places, ROOT))), **more}
