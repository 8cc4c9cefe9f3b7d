"""An installation in a temporary folder, and a data set of the user's own in it."""

from pathlib import Path

from resources.settings import Installation

OWN = """
name = "own"
title = "Own"
domain = "movies"

[[sources]]
format = "recbole"
"""


def installation(root: Path, own: str = "") -> Installation:
    """An installation; ``own``: the file of the user's data set, if there is one."""
    home = Installation.from_environment({"RAREC_HOME": str(root)})
    home.datasets.mkdir()
    if own:
        (home.datasets / "own.toml").write_text(own)
    return home
