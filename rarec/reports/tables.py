"""Tables of formatted cells, as Markdown and as plain text; and the cards above them."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rarec.reports.records import Effort

UNDEFINED = "–"
TEXT_WIDTH = 48
"""Most characters of a cell in a terminal."""


@dataclass(frozen=True)
class Table:
    """A table of formatted cells. The first `n_text` columns are text, the others numbers; the first names the row."""

    section: str
    title: str
    where: str
    """Where the figures come from: data set, split, protocol if any, seed and data version."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int = 1

    @property
    def caption(self) -> str:
        """Title and provenance, on one line."""
        return f"{self.title}: {self.where}"


@dataclass(frozen=True)
class Card:
    """One figure that sums up a report."""

    label: str
    value: str
    details: tuple[str, ...]
    """One line each."""


def number(value: float, spec: str = ".4f") -> str:
    """A number with 4 decimals, or as `spec` says; a dash if it is undefined."""
    return UNDEFINED if math.isnan(value) else format(value, spec)


def p_value(value: float) -> str:
    """A p-value with 4 decimals; "<0.0001" below that."""
    return "<0.0001" if value < 0.0001 else number(value)


def effort_tables(efforts: Sequence[Effort], figure: str) -> list[Table]:
    """What the trainings took, in one table; none if there are none.

    The last column is the time to the best validation ``figure`` of the weakest model, which all of them reach.
    """
    if not efforts:
        return []
    goal = min((max(one.validation) for one in efforts if one.validation), default=math.nan)
    rows = tuple(
        (
            one.model,
            str(one.epochs),
            str(one.best_epoch),
            number(one.seconds, ",.0f"),
            number(one.peak_memory_mib, ",.0f"),
            number(one.seconds_to(goal), ",.0f"),
        )
        for one in efforts
    )
    reached = f"Seconds to validation {figure} {number(goal)}"
    header = ("Model", "Epochs", "Best epoch", "Seconds", "Peak memory, MiB", reached)
    return [Table("training", "Cost of training", "as each worker measured it", header, rows)]


def as_markdown(tables: Iterable[Table], summary: str = "") -> str:
    """A summary and the tables in Markdown, each under its caption. Text is escaped, so names cannot add markup."""
    parts = [_markdown(summary)] if summary else []
    for table in tables:
        aligns = ["---" if column < table.n_text else "---:" for column in range(len(table.header))]
        lines = [
            f"**{_markdown(table.caption)}**",
            "",
            _markdown_row(table.header),
            _markdown_row(aligns, escape=False),
            *(_markdown_row(row) for row in table.rows),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Sequence[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(_markdown(cell) if escape else cell for cell in cells) + " |"


def _markdown(text: str) -> str:
    """Text on one line, with special characters of Markdown and HTML escaped."""
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_text(tables: Iterable[Table], summary: str = "", longest: int = TEXT_WIDTH) -> str:
    """A summary and the tables as aligned plain text, for a terminal; cells have at most ``longest`` characters."""
    parts = [summary] if summary else []
    for table in tables:
        lines = [tuple(cell[:longest] for cell in row) for row in (table.header, *table.rows)]
        widths = [max(len(row[column]) for row in lines) for column in range(len(table.header))]
        formatted = [
            "  ".join(
                cell.ljust(width) if column < table.n_text else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in lines
        ]
        parts.append("\n".join([table.caption, formatted[0], "-" * len(formatted[0]), *formatted[1:]]))
    return "\n\n".join(parts) + "\n"
