"""The ranking report: built from ranks and lists, written as JSON, HTML page and plots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rarec.errors import InputError
from rarec.metrics.coverage import recommendation_stats
from rarec.metrics.groups import Groups, activity_groups, metrics_by_group, popularity_groups
from rarec.metrics.ranking import RankingResult, as_float_ranks, per_user_metrics, ranking_table
from rarec.metrics.significance import compare_paired
from rarec.reports.page import ReportPaths, write_page
from rarec.reports.ranking.plots import report_plots
from rarec.reports.ranking.records import (
    Comparison,
    GroupScores,
    Published,
    RankingCurve,
    RankingReport,
    Recommended,
    Scores,
)
from rarec.reports.ranking.tables import KEY_METRICS, headline, markdown_tables, report_tables, summary, text_tables
from rarec.reports.records import Effort, Epoch, Link
from rarec.types import Float64Array, IntArray, Protocol, Split

__all__ = [
    "Comparison",
    "Effort",
    "Epoch",
    "GroupScores",
    "Link",
    "Published",
    "RankingCurve",
    "RankingOutcome",
    "RankingReport",
    "Recommended",
    "ReportPaths",
    "Scores",
    "build_report",
    "markdown_tables",
    "text_tables",
    "write_report",
]

LIST_LENGTHS = (10, 50)


@dataclass(frozen=True)
class RankingOutcome:
    """Result of one model on one split: the full ranking of all U users."""

    model: str
    split: Split
    targets: Tensor | npt.ArrayLike
    """(U,) item index of each user's target; -1 for none."""
    ranking: RankingResult


def build_report(
    outcomes: Sequence[RankingOutcome],
    *,
    dataset: str,
    data_version: str,
    seeds: Mapping[str, int],
    split_rule: str,
    training_counts: npt.ArrayLike,
    training_lengths: npt.ArrayLike,
    comparisons: Sequence[tuple[str, str]] = (),
    controls: Sequence[tuple[str, str]] = (),
    curves: Sequence[RankingCurve] = (),
    published: Sequence[Published] = (),
    efforts: Sequence[Effort] = (),
    links: Sequence[Link] = (),
    notes: Sequence[str] = (),
) -> RankingReport:
    """Compute all figures of the report, unmasked and masked.

    Args:
        outcomes: One per model and split. Models are shown in the order of their first appearance.
        dataset: Name of the data set.
        data_version: Version of the data that the models were evaluated on.
        seeds: Seed of each model's training; their sum seeds the bootstrap.
        split_rule: How training, validation and test were split, in words.
        training_counts: (I,) training interactions of each item.
        training_lengths: (U,) training interactions of each user.
        comparisons: Pairs of a baseline and a candidate to compare, paired by user, on HR, NDCG and MRR at 10, and in
            each group on HR and NDCG. The first pair makes the summary.
        controls: Pairs that show what a model owes to its claimed cause: itself or the model without the cause, before
            and after. They share one table.
        curves: Training curves.
        published: Metrics that others published for the same data set, split and protocol.
        efforts: What the trainings took.
        links: Links to other web pages.
        notes: Remarks to show on the page.

    Raises:
        InputError: An outcome has other users or targets than the rest or appears twice, or a model to compare has no
            outcome.
    """
    counts, lengths = np.asarray(training_counts), np.asarray(training_lengths)
    popularity, activity = popularity_groups(counts), activity_groups(lengths)
    ranks: dict[tuple[str, Split, Protocol], Float64Array] = {}
    targets_of: dict[Split, IntArray] = {}
    scores, groups, recommended = [], [], []
    for outcome in outcomes:
        targets = np.asarray(outcome.targets)
        result = outcome.ranking
        if not len(targets) == len(result.rank) == len(lengths):
            raise InputError(
                f"{outcome.model} on {outcome.split} has {len(targets)} targets and {len(result.rank)} ranks, but "
                f"there are {len(lengths)} users; give a rank to every user (-1 for users without target)."
            )
        if not np.array_equal(targets, targets_of.setdefault(outcome.split, targets)):
            raise InputError(f"{outcome.model} has other targets on {outcome.split} than the previous models.")
        by_protocol: tuple[tuple[Protocol, Tensor, Tensor | None], ...] = (
            ("unmasked", result.rank, result.top_items),
            ("masked", result.rank_masked, result.top_items_masked),
        )
        for protocol, rank, lists in by_protocol:
            key = (outcome.model, outcome.split, protocol)
            if key in ranks:
                raise InputError(f"There are two outcomes of {outcome.model} on {outcome.split}; give only one.")
            ranks[key] = as_float_ranks(rank)
            where: dict[str, Any] = {"model": outcome.model, "split": outcome.split, "protocol": protocol}
            n_users = int(np.count_nonzero(~np.isnan(ranks[key])))
            scores.append(Scores(**where, n_users=n_users, metrics=ranking_table(rank)))
            groups += [
                GroupScores(**where, **asdict(group))
                for users in (popularity.of(targets), activity)
                for group in metrics_by_group(rank, users)
            ]
            if lists is not None:
                recommended += [
                    Recommended(**where, **asdict(recommendation_stats(lists, counts, n)))
                    for n in LIST_LENGTHS
                    if n <= lists.shape[1]
                ]
    seed = sum(seeds.values())
    of_users = {split: (popularity.of(targets), activity) for split, targets in targets_of.items()}
    compared = [one for pair in comparisons for one in _compare(ranks, *pair, groups=of_users, seed=seed)]
    causes = [
        one
        for pair in controls
        for one in _compare(ranks, *pair, groups=dict.fromkeys(of_users, ()), seed=seed)
        if one.metric in KEY_METRICS
    ]
    return RankingReport(
        dataset=dataset,
        data_version=data_version,
        seeds=dict(seeds),
        split_rule=split_rule,
        n_users=len(lengths),
        n_items=len(counts),
        models=tuple(dict.fromkeys(outcome.model for outcome in outcomes)),
        scores=tuple(scores),
        groups=tuple(groups),
        comparisons=tuple(compared),
        summary=summary(compared),
        causes=tuple(causes),
        recommended=tuple(recommended),
        curves=tuple(curves),
        published=tuple(published),
        efforts=tuple(efforts),
        links=tuple(links),
        notes=tuple(notes),
    )


def _compare(
    ranks: dict[tuple[str, Split, Protocol], Float64Array],
    baseline: str,
    candidate: str,
    *,
    groups: Mapping[Split, Sequence[Groups]],
    seed: int,
) -> Iterator[Comparison]:
    """Compare two models on each split and protocol for which both have ranks, and there in each group."""
    places = [(s, p) for model, s, p in ranks if model == baseline and (candidate, s, p) in ranks]
    if not places:
        raise InputError(f"{baseline} and {candidate} cannot be compared, as they have no split in common.")
    for split, protocol in places:
        first, second = ranks[baseline, split, protocol], ranks[candidate, split, protocol]
        every = np.ones(len(first), dtype=bool)
        members = [("", "", every)] + [
            (own.grouping, label, own.index == number)
            for own in groups[split]
            for number, label in enumerate(own.labels)
        ]
        for grouping, group, users in members:
            of_candidate = dict(per_user_metrics(second[users], (10,)))
            for metric, values in per_user_metrics(first[users], (10,)):
                if group and metric not in KEY_METRICS:
                    continue
                yield Comparison(
                    baseline=baseline,
                    candidate=candidate,
                    split=split,
                    protocol=protocol,
                    metric=metric,
                    **asdict(compare_paired(values, of_candidate[metric], seed=seed)),
                    grouping=grouping,
                    group=group,
                )


def write_report(report: RankingReport, folder: Path) -> ReportPaths:
    """Write the report as JSON, page and plots into `folder`; see `page.write_page`."""
    return write_page(folder, "ranking.html", report, headline(report), report_tables(report), report_plots(report))
