"""The drift report: a champion's figures at its promotion, and on events since then."""

from pathlib import Path

import pydantic

from rarec.champions.drift import DriftRule, RellaDriftRule, Verdict
from rarec.reports.page import ReportPaths, write_page
from rarec.reports.records import Figure, Report, Text
from rarec.reports.tables import Card, Table, as_markdown, number


class DriftReport(Report):
    """A champion at its promotion and now."""

    version: int = pydantic.Field(description="Version of the champion in MLflow.")
    events: int
    users: int
    first: int = pydantic.Field(description="Time of the oldest new event, in seconds.")
    last: int = pydantic.Field(description="Time of the newest event, in seconds.")
    then: Text = pydantic.Field(description="Which events it was measured on at its promotion, and how many.")
    before: dict[str, Figure] = pydantic.Field(description="Figures at its promotion.")
    now: dict[str, Figure]
    choice: str = pydantic.Field(description="The metric that decides.")
    rule: DriftRule | RellaDriftRule
    verdict: Verdict
    reason: Text


def drift_tables(report: DriftReport) -> list[Table]:
    """Each figure and its value at the promotion."""
    undefined = float("nan")
    rows = []
    for name, value in report.now.items():
        then = report.before.get(name, undefined)
        rows.append((name, number(then), number(value), number(value - then, "+.4f")))
    where = f"{report.dataset}, version {report.version}, {report.events:,} new events of {report.users:,} users"
    return [Table("drift", "Drift", where, ("Figure", "At promotion", "Now", "Difference"), tuple(rows))]


def drift_markdown(report: DriftReport) -> str:
    """`drift_tables` as Markdown."""
    return as_markdown(drift_tables(report))


def write_drift_report(report: DriftReport, folder: Path) -> ReportPaths:
    """Write `report.json` and `report.html` into ``folder``."""
    cards = [
        Card("Asked for", report.verdict, (report.reason,)),
        Card(
            f"{report.choice} now",
            number(report.now.get(report.choice, float("nan"))),
            (f"at promotion {number(report.before.get(report.choice, float('nan')))}",),
        ),
        Card("New events", f"{report.events:,}", (f"{report.users:,} users",)),
    ]
    return write_page(folder, "drift.html", report, cards, drift_tables(report), [])
