"""`python docs/reference.py`: write the reference of settings, from the stages' declarations and `Installation`.

Each part stands between `<!-- generated: NAME -->` and `<!-- end of generated: NAME -->`. With `--check` nothing is
written, and the exit code is 1 if a page is out of date.
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
REGION = r"(<!-- generated: {name} -->\n).*?(\n<!-- end of generated: {name} -->)"
TRAINING = (
    "nproc",
    "threads",
    "heartbeat_s",
    "engine",
    "hostfile",
    "remote_shell",
    "rendezvous",
    "nodes",
    "worker_environment",
)
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


def environment(training: bool) -> str:
    """A table of the installation's variables: those of trainings, or all others."""
    from resources.settings import ENGINE_VARIABLES, Installation

    home = ROOT / "RAREC_HOME"
    defaults = Installation.from_environment({"RAREC_HOME": str(home)})
    rows = []
    for name, info in Installation.model_fields.items():
        if (name in TRAINING) != training:
            continue
        if name == "engine":
            for field, one in type(defaults.engine).model_fields.items():
                kind = "JSON file" if field == "deepspeed" else _type(one.annotation, one.metadata)
                rows.append(_variable(ENGINE_VARIABLES[field], kind, one.default, one))
            continue
        named = [one for one in info.metadata if isinstance(one, str)]
        value = getattr(defaults, name)
        text = ", ".join(value) if isinstance(value, tuple) else str(value).replace(str(home), "RAREC_HOME")
        kind = named[0] if named else _type(info.annotation, info.metadata)
        rows.append(_variable(info.validation_alias, kind, ".rarec" if name == "root" else text, info))
    return "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows])


def _variable(name: Any, kind: str, default: Any, info: FieldInfo) -> str:
    text = json.dumps(default) if isinstance(default, bool) else str(default)
    shown = "none" if default in ("", None, {}) else f"`{text}`"
    meaning = (info.description or "").replace("|", "\\|").replace("<", "&lt;")
    return f"| `{name}` | {kind} | {shown} | {meaning} |"


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
    parts = {
        "configuration.md": {"settings": reference(), "environment": environment(training=False)},
        "training.md": {"environment of trainings": environment(training=True)},
    }
    for page, texts in parts.items():
        file = ROOT / "docs" / page
        after = before = file.read_text()
        for name, text in texts.items():
            region = re.compile(REGION.format(name=name), re.DOTALL)
            after = region.sub(lambda found, text=text: f"{found[1]}\n{text}\n{found[2]}", after)
        if check and after != before:
            raise SystemExit(f"error: docs/{page} is out of date; run python docs/reference.py")
        if after != before:
            file.write_text(after)


if __name__ == "__main__":
    typer.run(main)
