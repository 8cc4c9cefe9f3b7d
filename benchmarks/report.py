"""Figures as a Markdown table and as JSON, with the command and the machine they come from.

`python -m benchmarks.report` writes the pages in `benchmarks/results` again from their records, with today's words.
"""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Column, Figures
from benchmarks.registry import BENCHMARKS

SHARED = (
    "*Ours* is RaRec. Seconds are wall-clock seconds of this process, set up as a training worker. Freed memory is "
    "kept (`keep_freed_memory`), which makes both sides equally faster."
)


def cell(value: float | int | str | None) -> str:
    """A table cell: three significant digits, or whole numbers from 100 up; a dash for what was not measured."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 99.95 else f"{value:.3g}"


def table(figures: Figures) -> str:
    """Rows of all columns in order of appearance."""
    rows = list(dict.fromkeys(row for column in figures.values() for row in column))
    lines = [f"| | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(cell(column.get(row)) for column in figures.values())} |" for row in rows]
    return "\n".join(lines)


def markdown(
    results: Mapping[str, Figures], command: str, machine: Column, measured: str, about: Mapping[str, str] | None = None
) -> str:
    """A page of one or more benchmarks; ``about``: what they measure, where they are not among `BENCHMARKS`."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    parts = [f"    {command}", f"Measured {measured} on: {facts}.", *([] if about else [SHARED])]
    for name, figures in results.items():
        text = about[name] if about else inspect.getdoc(BENCHMARKS[name]) or ""
        parts += [f"## {name}", text, table(figures)]
    return "\n\n".join(parts) + "\n"


def write(
    stem: Path,
    results: Mapping[str, Figures],
    command: str,
    machine: Column,
    measured: str,
    effort: dict[str, Any],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write ``stem``.json and ``stem``.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": command,
        "measured": measured,
        "machine": machine,
        "effort": effort,
        "results": {name: {title: _plain(column) for title, column in f.items()} for name, f in results.items()},
    }
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    stem.with_suffix(".md").write_text(markdown(results, command, machine, measured, about))


def _plain(column: Column) -> dict[str, float | int | str | None]:
    """JSON knows no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in column.items()}


def render() -> None:
    """Write every recorded page again, except those of `benchmarks.gpu`."""
    from benchmarks import replay, rules

    others = {"replay": replay.ABOUT, "rules": rules.ABOUT}
    for file in sorted((Path(__file__).parent / "results").glob("*.json")):
        record = json.loads(file.read_text())
        about = others.get(file.stem)
        if about or set(record["results"]) <= set(BENCHMARKS):
            parts = (record["results"], record["command"], record["machine"], record["measured"], about)
            file.with_suffix(".md").write_text(markdown(*parts))


if __name__ == "__main__":
    render()
