"""No file so long, and no package so full, that one has to search in it."""

from collections import Counter
from pathlib import Path

import pytest
from places import ROOT

PACKAGES = ("rarec", "assets", "resources", "pipelines", "benchmarks")
MOST_LINES = 400
MOST_MODULES = 12
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES_OF = Counter(path.parent for path in FILES if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_long(path):
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= MOST_LINES, f"{path} has {lines} lines; split it by what its parts are for"


@pytest.mark.parametrize("package", sorted(MODULES_OF), ids=str)
def test_no_package_is_crowded(package):
    number = MODULES_OF[package]
    assert number <= MOST_MODULES, f"{package} holds {number} modules; group those that belong together"


def test_the_packages_were_found():
    assert {path.parts[0] for path in FILES} == set(PACKAGES)
    assert Path("rarec/data/incoming") in MODULES_OF
