"""The tables and cards of the ranking report."""

import math
from collections.abc import Callable, Iterable, Sequence

from rarec.reports.ranking.records import Comparison, RankingReport
from rarec.reports.records import SPLIT_NAMES
from rarec.reports.tables import UNDEFINED, Card, Table, as_markdown, as_text, effort_tables, number, p_value
from rarec.types import Protocol, Split

PROTOCOLS: tuple[Protocol, ...] = ("unmasked", "masked")
KEY_METRICS = ("HR@10", "NDCG@10")
SUMMARY_METRIC = "NDCG@10"
TEXT_SECTIONS = ("scores", "comparisons", "training", "controls")


def provenance(report: RankingReport, split: Split, protocol: Protocol) -> str:
    """Where the figures of a table come from: data set, split, protocol, seed, data version."""
    where = f"{report.dataset}, {SPLIT_NAMES[split]} split, {protocol}"
    return f"{where}, {report.seed_text}, data version {report.data_version}"


def headline(report: RankingReport) -> list[Card]:
    """Key metrics on the first split, of the compared candidate or else of the last model."""
    if not report.splits:
        return []
    split = report.splits[0]
    name = SPLIT_NAMES[split]
    pairs = _pairs(report.comparisons)
    compared = [
        c
        for c in report.comparisons
        if (c.split, c.group) == (split, "") and c.metric in KEY_METRICS and (c.baseline, c.candidate) == pairs[0]
    ]
    if compared:
        return [
            Card(
                f"{c.metric}, {name}, {c.protocol}",
                number(c.candidate_mean),
                (
                    f"{c.candidate}; {c.baseline} {number(c.baseline_mean)}",
                    f"difference {number(c.difference, '+.4f')}",
                    f"{c.confidence:.0%} interval {_interval(c)}",
                    f"paired t-test p {p_value(c.t_test_p)}",
                ),
            )
            for c in compared
        ]
    return [
        Card(f"{metric}, {name}, {scores.protocol}", number(scores.metrics.get(metric, math.nan)), (scores.model,))
        for scores in report.scores
        if scores.split == split and scores.model == report.models[-1]
        for metric in KEY_METRICS
    ]


def report_tables(report: RankingReport) -> list[Table]:
    """All tables, by section, with the test split first."""
    makers: tuple[Callable[[RankingReport, Split, Protocol], list[Table]], ...] = (
        _score_tables,
        _comparison_tables,
        _group_tables,
        _recommended_tables,
    )

    def made(maker: Callable[[RankingReport, Split, Protocol], list[Table]]) -> list[Table]:
        return [table for split in report.splits for protocol in PROTOCOLS for table in maker(report, split, protocol)]

    tables = [table for maker in makers for table in made(maker)]
    return [*tables, *effort_tables(report.efforts, SUMMARY_METRIC), *made(_cause_tables)]


def _score_tables(report: RankingReport, split: Split, protocol: Protocol) -> list[Table]:
    own = [scores for scores in report.scores if (scores.split, scores.protocol) == (split, protocol)]
    published = [figures for figures in report.published if (figures.split, figures.protocol) == (split, protocol)]
    if not own:
        return []
    names = list(dict.fromkeys(name for scores in own for name in scores.metrics))
    labelled = [(scores.model, f"{scores.n_users:,}", scores.metrics) for scores in own]
    labelled += [(f"published: {figures.source}", UNDEFINED, figures.metrics) for figures in published]
    rows = [
        (label, users, *(number(metrics.get(name, math.nan)) for name in names)) for label, users, metrics in labelled
    ]
    where = provenance(report, split, protocol)
    return [Table("scores", "Ranking metrics", where, ("Model", "Users", *names), tuple(rows))]


def summary(comparisons: Sequence[Comparison]) -> str:
    """Who wins the first comparison on the test split, and by how much, in one sentence for each protocol."""
    pair = _pairs(comparisons)[:1]
    told = []
    for c in comparisons:
        if (c.split, c.group, c.metric) != ("test", "", SUMMARY_METRIC) or (c.baseline, c.candidate) not in pair:
            continue
        if c.ci_high < 0:  # told from the winner's side
            by = f"{number(-c.ci_high, '.4f')} to {number(-c.ci_low, '.4f')}"
            told.append(f"{c.protocol}, {c.baseline} beats {c.candidate} by {number(-c.difference)} {c.metric}")
        else:
            by = _interval(c)
            won = f"{c.protocol}, {c.candidate} beats {c.baseline} by {number(c.difference)} {c.metric}"
            none = f"{c.protocol}, no difference between {c.candidate} and {c.baseline} is shown in {c.metric}"
            told.append(won if c.ci_low > 0 else none)
        told[-1] += f" ({c.confidence:.0%} interval {by})"
    if not told:
        return ""
    text = "; ".join(told)
    return text[0].upper() + text[1:] + "."


def _pairs(comparisons: Iterable[Comparison]) -> list[tuple[str, str]]:
    """The compared models, in order."""
    return list(dict.fromkeys((c.baseline, c.candidate) for c in comparisons))


def _comparison_tables(report: RankingReport, split: Split, protocol: Protocol) -> list[Table]:
    here = [c for c in report.comparisons if (c.split, c.protocol) == (split, protocol)]
    tables = []
    for baseline, candidate in _pairs(here):
        own = [c for c in here if (c.baseline, c.candidate) == (baseline, candidate)]
        for grouping in dict.fromkeys(c.grouping for c in own):
            chosen = [c for c in own if c.grouping == grouping]
            rows = tuple((*((c.group,) if grouping else ()), *_compared(c)) for c in chosen)
            header = (
                *(("Group",) if grouping else ()),
                "Metric",
                "Users",
                baseline,
                candidate,
                "Difference",
                "Relative",
                f"{chosen[0].confidence:.0%} interval",
                "p (t-test)",
                "p (Wilcoxon)",
            )
            what = f"{candidate} minus {baseline}" + (f", by {grouping}" if grouping else "")
            reasons = "" if grouping else "".join(f". {c.metric}: {c.reason}" for c in chosen if c.reason)
            section = "group comparisons" if grouping else "comparisons"
            where = provenance(report, split, protocol) + reasons
            tables.append(Table(section, what, where, header, rows, n_text=2 if grouping else 1))
    return tables


def _cause_tables(report: RankingReport, split: Split, protocol: Protocol) -> list[Table]:
    """One row a pair: what the model, or a control, gains."""
    here = [c for c in report.causes if (c.split, c.protocol) == (split, protocol)]
    if not here:
        return []
    rows = []
    for baseline, candidate in _pairs(here):
        own = [c for c in here if (c.baseline, c.candidate) == (baseline, candidate)]
        shown = {c.metric: f"{number(c.difference, '+.4f')} ({_interval(c)})" for c in own}
        rows.append((candidate, baseline, _verdict(own), *(shown[name] for name in KEY_METRICS)))
    header = ("Model", "minus", f"The {here[0].confidence:.0%} intervals", *KEY_METRICS)
    return [Table("controls", "What retrieval is worth", provenance(report, split, protocol), header, tuple(rows), 3)]


def _verdict(compared: Sequence[Comparison]) -> str:
    sides = {1 if c.ci_low > 0 else -1 if c.ci_high < 0 else 0 for c in compared}
    told = {(1,): "exclude 0: better", (-1,): "exclude 0: worse", (0,): "include 0", (-1, 1): "exclude 0 on both sides"}
    return told.get(tuple(sorted(sides)), "one includes 0")


def _compared(c: Comparison) -> tuple[str, ...]:
    return (
        c.metric,
        f"{c.n_users:,}",
        number(c.baseline_mean),
        number(c.candidate_mean),
        number(c.difference, "+.4f"),
        number(c.difference / c.baseline_mean if c.baseline_mean else math.nan, "+.1%"),
        _interval(c),
        p_value(c.t_test_p),
        p_value(c.wilcoxon_p),
    )


def _interval(comparison: Comparison) -> str:
    return f"{number(comparison.ci_low, '+.4f')} to {number(comparison.ci_high, '+.4f')}"


def _group_tables(report: RankingReport, split: Split, protocol: Protocol) -> list[Table]:
    chosen = [scores for scores in report.groups if (scores.split, scores.protocol) == (split, protocol)]
    tables = []
    for grouping in dict.fromkeys(scores.grouping for scores in chosen):
        cells = {(scores.group, scores.model): scores for scores in chosen if scores.grouping == grouping}
        models = [model for model in report.models if any(model == of for _, of in cells)]
        rows = []
        for group in dict.fromkeys(group for group, _ in cells):
            of_model = [cells[group, model] for model in models]
            values = [number(scores.metrics[name]) for name in KEY_METRICS for scores in of_model]
            rows.append((group, of_model[0].description, f"{of_model[0].n_users:,}", *values))
        header = ("Group", "What it holds", "Users", *(f"{name} {model}" for name in KEY_METRICS for model in models))
        where = provenance(report, split, protocol)
        tables.append(Table("groups", f"By {grouping}", where, header, tuple(rows), n_text=2))
    return tables


def _recommended_tables(report: RankingReport, split: Split, protocol: Protocol) -> list[Table]:
    chosen = [stats for stats in report.recommended if (stats.split, stats.protocol) == (split, protocol)]
    if not chosen:
        return []
    rows = tuple(
        (
            stats.model,
            str(stats.n),
            number(stats.coverage),
            number(stats.mean_training_count, ".1f"),
            number(stats.mean_popularity_percentile, ".1f"),
        )
        for stats in chosen
    )
    header = ("Model", "List length", "Coverage", "Mean training count", "Mean popularity percentile")
    return [Table("recommended", "Recommended items", provenance(report, split, protocol), header, rows)]


def markdown_tables(report: RankingReport) -> str:
    """Summary, and all tables in Markdown, each under its caption. Text is escaped, so names cannot add markup."""
    return as_markdown(report_tables(report), report.summary)


def text_tables(report: RankingReport) -> str:
    """Summary, and tables of metrics and comparisons as aligned plain text, for a terminal."""
    return as_text((table for table in report_tables(report) if table.section in TEXT_SECTIONS), report.summary)
