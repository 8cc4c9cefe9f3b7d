"""`python docs/reference.py`: write the reference of settings in docs/configuration.md from the stages' declarations.

It stands between `<!-- generated: settings -->` and `<!-- end of generated: settings -->`. With `--check` nothing is
written, and the exit code is 1 if it is out of date.
"""

import importlib
import json
import pkgutil
import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
REGION = re.compile(r"(<!-- generated: settings -->\n).*?(\n<!-- end of generated: settings -->)", re.DOTALL)
GROUPS = (
    "raw", "sequences", "recommender", "text", "semantic", "index", "instruction", "language", "baselines", "reports",
    "operations", "sweeps",
)  # fmt: skip
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def reference() -> str:
    """A table for each asset that has settings, group by group."""
    import assets
    from assets.framework.stage import STAGES

    for module in pkgutil.walk_packages(assets.__path__, "assets."):
        importlib.import_module(module.name)
    known: dict[type, str] = {}
    parts = []
    for stage in sorted(STAGES.values(), key=lambda one: (*GROUPS, one.group).index(one.group)):
        if not stage.settings.model_fields:
            continue
        names = ", ".join(f"`{asset}`" for asset in stage.assets)
        if stage.settings in known:
            same = known[stage.settings]
            text = f"The settings of [{same}](#{same.strip('`')})."
        else:
            rows = [_row(name, info) for name, info in stage.settings.model_fields.items()]
            text = "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows])
        known.setdefault(stage.settings, names)
        parts.append(f"### {names}\n\n{text}")
    return "\n\n".join(parts)


def _row(name: str, info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    default = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    meaning = (info.description or "").replace("|", "\\|").replace("\n", " ")
    return f"| `{name}` | {_type(info.annotation, info.metadata)} | `{default}` | {meaning} |"


def _type(annotation: Any, metadata: list[Any]) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], [*(part for one in inner[1:] for part in getattr(one, "metadata", [one])), *metadata])
    if origin is types.UnionType:
        return " or ".join(_type(one, metadata) for one in inner if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list: {_type(inner[0], [])}"
    bounds = [
        f"{word} {getattr(one, bound):g}" for one in metadata for bound, word in BOUNDS.items() if hasattr(one, bound)
    ]
    return ", ".join([WORDS.get(annotation, str(annotation)), *bounds])


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False) -> None:
    """Bring the reference up to date."""
    sys.path.insert(0, str(ROOT))
    before = PAGE.read_text()
    text = reference()
    after = REGION.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", before)
    if check and after != before:
        raise SystemExit("error: docs/configuration.md is out of date; run python docs/reference.py")
    if after != before:
        PAGE.write_text(after)


if __name__ == "__main__":
    typer.run(main)
