"""`python docs/reference.py`: write the reference of settings, from the stages' declarations and `Installation`.

Each part stands between `<!-- generated: NAME -->` and `<!-- end of generated: NAME -->`. With `--check` nothing is
written, and the exit code is 1 if a page is out of date.
"""

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
REGION = r"(<!-- generated: {name} -->\n).*?(\n<!-- end of generated: {name} -->)"
TRAINING = (
    "RAREC_NPROC", "RAREC_THREADS", "RAREC_HEARTBEAT", "RAREC_PRECISION", "RAREC_ZERO_STAGE", "RAREC_OFFLOAD",
    "RAREC_ACCUMULATION", "RAREC_DEEPSPEED", "RAREC_CHECKPOINT_STEPS", "RAREC_CHECKPOINT_MINUTES", "RAREC_HOSTFILE",
    "RAREC_REMOTE_SHELL", "RAREC_RENDEZVOUS", "RAREC_NODES", "RAREC_WORKER_ENVIRONMENT",
)  # fmt: skip
GROUPS = (
    "raw", "sequences", "recommender", "text", "semantic", "index", "instruction", "language", "baselines", "reports",
    "operations", "sweeps",
)  # fmt: skip


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
    from resources.settings_table import settings_table

    rows = [
        f"| `{one.name}` | {one.type} | {one.default if one.default == 'none' else f'`{one.default}`'} "
        f"| {_cell(one.description)} |"
        for one in settings_table()
        if (one.name in TRAINING) == training
    ]
    return "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows])


def declaration(model: str) -> str:
    """A table of the keys of a data set's file, or of one of its sources."""
    from rarec.data.source_spec import SourceSpec
    from rarec.data.spec import DatasetSpec

    fields = {"data set": DatasetSpec, "source": SourceSpec}[model].model_fields
    rows = []
    for name, info in fields.items():
        value = info.get_default(call_default_factory=True)
        default = "required" if info.is_required() else "none" if value in (None, {}, (), "") else _plain(value)
        rows.append(f"| `{name}` | {_cell(default)} | {_cell(info.description or '')} |")
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _plain(value: object) -> str:
    return f"`{value}`" if isinstance(value, str | int | float) else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(name: str, info: FieldInfo) -> str:
    from rarec.config import type_in_words

    value = info.get_default(call_default_factory=True)
    default = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"| `{name}` | {type_in_words(info)} | `{default}` | {_cell(info.description or '')} |"


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False) -> None:
    """Bring the reference up to date."""
    sys.path.insert(0, str(ROOT))
    parts = {
        "configuration.md": {"settings": reference(), "environment": environment(training=False)},
        "data-sets.md": {"data set": declaration("data set"), "source": declaration("source")},
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
