"""The plots of the ranking report."""

import math
import re
from collections.abc import Iterator

from rarec.reports.plots import INK, Drawing, Plot, bars, curve_drawing, finish, legend, new_figure
from rarec.reports.ranking.records import RankingReport
from rarec.reports.ranking.tables import PROTOCOLS
from rarec.reports.records import SPLIT_NAMES

PLOTTED = ("HR@10", "NDCG@10")
GROUP_METRIC = "NDCG@10"


def report_plots(report: RankingReport) -> list[Plot]:
    """All plots for which the report has data."""
    return finish(report, _metric_plot, _group_plots, lambda report: curve_drawing(report.curves, PLOTTED))


def _metric_plot(report: RankingReport) -> Iterator[Drawing]:
    """HR@10 and NDCG@10 of each model, masked and unmasked, with published figures as dashed lines."""
    if not report.splits:
        return
    split = report.splits[0]
    figure = new_figure(10, 3.9)
    words = []
    for axes, metric in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        values: dict[tuple[str, str], float] = {
            (s.model, s.protocol): s.metrics[metric] for s in report.scores if s.split == split and metric in s.metrics
        }
        words += bars(axes, report.models, PROTOCOLS, values, metric)
        for p, protocol in enumerate(PROTOCOLS):
            marks = [
                figures.metrics[metric]
                for figures in report.published
                if (figures.split, figures.protocol) == (split, protocol) and metric in figures.metrics
            ]
            if marks:
                axes.hlines(marks, p - 0.42, p + 0.42, colors=INK, linestyles="dashed", linewidth=1, label="published")
        axes.set_xticks(range(len(PROTOCOLS)), PROTOCOLS)
        axes.set_xlabel("protocol")
    legend(figure)
    title = f"{' and '.join(PLOTTED)} on the {SPLIT_NAMES[split]} split, unmasked and masked"
    yield Drawing("metrics", "scores", title, f"Bar chart. {'; '.join(words)}.", figure)


def _group_plots(report: RankingReport) -> Iterator[Drawing]:
    """NDCG@10 of each model by group: one plot per grouping, one panel per protocol."""
    if not report.splits:
        return
    split = report.splits[0]
    for grouping in dict.fromkeys(scores.grouping for scores in report.groups):
        figure = new_figure(10, 3.9)
        words = []
        for axes, protocol in zip(figure.subplots(1, len(PROTOCOLS), sharey=True), PROTOCOLS, strict=True):
            chosen = [s for s in report.groups if (s.grouping, s.split, s.protocol) == (grouping, split, protocol)]
            users = {s.group: s.n_users for s in chosen}
            values = {(s.model, s.group): s.metrics.get(GROUP_METRIC, math.nan) for s in chosen}
            words += [f"{protocol}, {word}" for word in bars(axes, report.models, tuple(users), values, GROUP_METRIC)]
            axes.set_xticks(range(len(users)), [f"{group}\n{count:,} users" for group, count in users.items()])
            axes.set_xlabel(grouping)
            axes.set_title(protocol)
        legend(figure)
        title = f"{GROUP_METRIC} by {grouping} on the {SPLIT_NAMES[split]} split, unmasked and masked"
        name = re.sub(r"\W+", "_", grouping)
        yield Drawing(name, "groups", title, f"Bar chart. {'; '.join(words)}.", figure)
