"""Imports go one way: pipelines -> assets -> resources -> rarec, and inside rarec from room to room."""

import ast
from pathlib import Path

import pytest
from places import ROOT

LAYERS = ("pipelines", "assets", "resources", "rarec")  # each may import those behind it
# The rooms of rarec: each may import those before it. Rooms of one row do not import each other, but for the first.
ROOMS = (
    ("types", "config", "errors"),
    ("data",),
    ("training",),
    ("retrieval",),
    ("text",),
    ("metrics",),
    ("raserec", "rella", "baselines"),
    ("champions",),
    ("studies",),
    ("reports",),
)
MODULES = [path.relative_to(ROOT) for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(source: str, path: Path) -> set[str]:
    """Every module that a file imports anywhere: in functions, under TYPE_CHECKING, relatively, by import_module."""
    package = list(path.parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def forbidden(path: Path) -> set[str]:
    layer = path.parts[0]
    names = set(LAYERS[: LAYERS.index(layer)]) | {"tests", "benchmarks"}
    if layer == "rarec":
        names |= {"dagster", "mlflow", "dagster_pipes"}
        if path == Path("rarec/training/progress.py"):  # the one place that talks to Dagster Pipes
            names -= {"dagster_pipes"}
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_imports_against_the_direction(path):
    tops = {name.split(".")[0] for name in imported((ROOT / path).read_text(), path)}
    assert tops & forbidden(path) == set()


def room(parts: tuple[str, ...]) -> str:
    """The room of a module of rarec, by the parts of its path or of its dotted name."""
    return parts[1].removesuffix(".py")


def rooms_behind(name: str) -> set[str]:
    """The rooms that a room may not import."""
    place = next(place for place, row in enumerate(ROOMS) if name in row)
    own = set(ROOMS[0]) if place == 0 else {name}
    return {other for row in ROOMS[place:] for other in row} - own


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] == "rarec" and len(p.parts) > 1], ids=str)
def test_inside_rarec_a_room_imports_only_rooms_before_it(path):
    if path == Path("rarec/__init__.py"):
        assert imported((ROOT / path).read_text(), path) == set()
        return
    names = (tuple(name.split(".")) for name in imported((ROOT / path).read_text(), path))
    found = {room(name) for name in names if name[0] == "rarec" and len(name) > 1}
    assert found & rooms_behind(room(path.parts)) == set()


def test_the_rooms_are_all_there():
    rooms = {room(path.parts) for path in MODULES if path.parts[0] == "rarec" and path != Path("rarec/__init__.py")}
    assert rooms == {name for row in ROOMS for name in row}
    assert rooms_behind("rella") == {"raserec", "baselines", "champions", "studies", "reports"}
    assert "rella" not in rooms_behind("champions")
    assert rooms_behind("config") == rooms - set(ROOMS[0])


@pytest.mark.parametrize(
    "source",
    [
        "import assets.data.raw",
        "def f():\n    from assets import raw",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import assets.data.raw as r",
        "import importlib\nimportlib.import_module('assets.data.raw')",
    ],
)
def test_hidden_imports_are_found(source):
    path = Path("resources/x.py")
    assert {name.split(".")[0] for name in imported(source, path)} & forbidden(path) == {"assets"}


def test_relative_imports_are_resolved():
    assert "rarec.data.spec" in imported("from ..data import spec", Path("rarec/text/x.py"))
    assert "rarec.text.y" in imported("from .y import z", Path("rarec/text/x.py"))


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] != "rarec"], ids=str)
def test_dagster_modules_keep_their_annotations(path):
    """`from __future__ import annotations` would hide the types of `context` and `config` from Dagster."""
    assert "__future__.annotations" not in imported((ROOT / path).read_text(), path)


def test_the_four_packages_were_found():
    assert {path.parts[0] for path in MODULES} == set(LAYERS)
    assert Path("rarec/training/progress.py") in MODULES
