"""Both tracks on one page: what to recommend (ranking), and whether it will be liked (CTR), on the test split."""

from pathlib import Path

from rarec.errors import InputError
from rarec.reports.ctr.records import CtrReport
from rarec.reports.ctr.tables import ctr_cards, ctr_tables
from rarec.reports.page import ReportPaths, write_page
from rarec.reports.ranking.records import RankingReport
from rarec.reports.ranking.tables import headline, report_tables
from rarec.reports.records import Link, Report
from rarec.reports.tables import Card, Table, as_markdown

CARDS = 2  # of each track


class ComparisonReport(Report):
    """The reports of both tracks."""

    ranking: RankingReport
    ctr: CtrReport


def build_comparison_report(ranking: RankingReport, ctr: CtrReport, links: tuple[Link, ...] = ()) -> ComparisonReport:
    """Combine both reports.

    Raises:
        InputError: They are about different data sets.
    """
    if ranking.dataset != ctr.dataset:
        raise InputError(f"the ranking report is about {ranking.dataset}, but the CTR report is about {ctr.dataset}")
    versions = dict.fromkeys([ranking.data_version, ctr.data_version])
    return ComparisonReport(
        dataset=ranking.dataset,
        data_version=", ".join(versions),
        seeds={**ranking.seeds, **ctr.seeds},
        split_rule=f"Ranking: {ranking.split_rule} CTR: {ctr.split_rule}",
        models=(*ranking.models, *ctr.models),
        links=links,
        notes=(
            "The tracks answer different questions on different splits: a ranking figure and a CTR figure cannot be "
            "set against each other. What can be compared is each track with its own baseline.",
        ),
        ranking=ranking,
        ctr=ctr,
    )


def comparison_tables(report: ComparisonReport) -> list[Table]:
    """Metrics of the test split, and comparisons."""
    chosen = []
    for section, tables in (("ranking", report_tables(report.ranking)), ("ctr", ctr_tables(report.ctr))):
        chosen += [
            Table(section, table.title, table.where, table.header, table.rows, table.n_text)
            for table in tables
            if table.section in ("scores", "comparisons") and ", test split" in table.where
        ]
    return chosen


def comparison_markdown(report: ComparisonReport) -> str:
    """`comparison_tables` as Markdown."""
    return as_markdown(comparison_tables(report))


def write_comparison_report(report: ComparisonReport, folder: Path) -> ReportPaths:
    """Write `report.json` and `report.html` into ``folder``."""
    cards: list[Card] = [*headline(report.ranking)[:CARDS], *ctr_cards(report.ctr)[:CARDS]]
    return write_page(folder, "comparison.html", report, cards, comparison_tables(report), [])
