"""The tables and cards of the CTR report."""

import math
from collections.abc import Iterator, Sequence

from rarec.metrics.ctr import METRICS
from rarec.reports.ctr.records import Calibration, CtrComparison, CtrReport, CtrScores, Estimate
from rarec.reports.records import SPLIT_NAMES
from rarec.reports.tables import UNDEFINED, Card, Table, as_markdown, as_text, effort_tables, number
from rarec.types import Split

CHANCE = 0.5  # AUC of scores that tell nothing
HIGHER_IS_BETTER = {"AUC": True, "LogLoss": False, "ACC": True, "ECE": False}
CARD_METRICS = ("AUC", "LogLoss", "ACC")
GROUP_METRICS = ("AUC", "LogLoss")


def with_interval(estimate: Estimate) -> str:
    """An estimate as text: `0.7440 (0.731 to 0.757)`."""
    if math.isnan(estimate.value):
        return UNDEFINED
    return f"{number(estimate.value)} ({number(estimate.low, '.3f')} to {number(estimate.high, '.3f')})"


def reading(metric: str, difference: Estimate) -> str:
    """What the interval of a difference means, in words."""
    if math.isnan(difference.value):
        return UNDEFINED
    if not difference.excludes_zero:
        return "includes 0"
    return "excludes 0: better" if (difference.low > 0) == HIGHER_IS_BETTER[metric] else "excludes 0: worse"


def provenance(report: CtrReport, split: Split) -> str:
    """Where the figures of a table come from: data set, split, seed, data version."""
    return f"{report.dataset}, {SPLIT_NAMES[split]} split, {report.seed_text}, data version {report.data_version}"


def ctr_cards(report: CtrReport) -> list[Card]:
    """Metrics of the chosen model on the first split, and the difference of its AUC from the yardstick's."""
    split = report.splits[0]
    own = report.of(report.chosen, split)
    against = report.of(report.yardstick, split) if report.yardstick not in (None, report.chosen) else {}
    cards = []
    for name in CARD_METRICS if own else ():
        details = [report.chosen, f"95% interval {_range(own[name])}"]
        if against:
            details.append(f"{report.yardstick}: {number(against[name].value)}")
        cards.append(Card(f"{name}, {SPLIT_NAMES[split]}", number(own[name].value), tuple(details)))
    compared = report.compared(report.yardstick, report.chosen, split)
    if compared:
        auc = compared.differences["AUC"]
        details = [f"{report.chosen} minus {report.yardstick}", f"95% interval {_range(auc, '+.4f')}"]
        cards.append(
            Card(f"AUC difference, {SPLIT_NAMES[split]}", number(auc.value, "+.4f"), (*details, reading("AUC", auc)))
        )
    return cards


def ctr_tables(report: CtrReport) -> list[Table]:
    """All tables, by section, with the test split first."""
    by_split = (_score_table, _comparison_tables, _group_tables)
    tables = [table for maker in by_split for split in report.splits for table in maker(report, split)]
    once = (_calibration_table, _heterogeneity_tables, _similarity_tables, _seed_table)
    causes = [table for split in report.splits for table in _cause_tables(report, split)]
    costs = effort_tables(report.efforts, "AUC")
    return [*tables, *(table for maker in once for table in maker(report)), *costs, *causes]


def summary(comparisons: Sequence[CtrComparison], yardstick: str | None, chosen: str) -> str:
    """Who wins on the test split, the chosen model or the yardstick, and by how much AUC, in one sentence."""
    for compared in comparisons:
        if (compared.split, compared.baseline, compared.candidate) != ("test", yardstick, chosen):
            continue
        auc = compared.differences["AUC"]
        if not auc.excludes_zero:
            return (
                f"No difference in AUC between {chosen} and {yardstick} is shown (95% interval {_range(auc, '+.4f')})."
            )
        if auc.value > 0:
            return f"{chosen} beats {yardstick} by {number(auc.value)} AUC (95% interval {_range(auc)})."
        interval = f"{number(-auc.high)} to {number(-auc.low)}"  # told from the winner's side
        return f"{yardstick} beats {chosen} by {number(-auc.value)} AUC (95% interval {interval})."
    return ""


def below_chance(scores: Sequence[CtrScores]) -> str:
    """What an AUC below .5 on the test split means, if a model's whole interval is there."""
    models = [one.model for one in scores if one.split == "test" and one.metrics["AUC"].high < CHANCE]
    if not models:
        return ""
    return (
        f"{' and '.join(models)} {'has' if len(models) == 1 else 'have'} an AUC below .5, the wrong way round: a "
        "language model that was never asked the question has no meaning for its answers yet; tuning gives it one."
    )


def ctr_markdown_tables(report: CtrReport) -> str:
    """Summary, and all tables in Markdown, each under its caption. Text is escaped, so names cannot add markup."""
    return as_markdown(ctr_tables(report), report.summary)


def ctr_text_tables(report: CtrReport) -> str:
    """Summary, and tables of metrics and comparisons as aligned plain text, for a terminal."""
    return as_text(
        (table for table in ctr_tables(report) if table.section in ("scores", "comparisons", "controls")),
        report.summary,
    )


def ordered_models(report: CtrReport, split: Split) -> list[str]:
    """Models with scores on a split, the yardstick first."""
    models = [model for model in report.models if report.of(model, split)]
    return sorted(models, key=lambda model: model != report.yardstick)


def _score_table(report: CtrReport, split: Split) -> Iterator[Table]:
    size = next(size for size in report.sizes if size.split == split)
    several = len(set(report.seeds.values())) > 1
    rows = []
    for model in ordered_models(report, split):
        seed = (str(report.seeds.get(model, UNDEFINED)),) if several else ()
        read = (report.read.get(model, UNDEFINED),) if report.read else ()
        rows.append((model, *read, *seed, *(with_interval(report.of(model, split)[name]) for name in METRICS)))
    where = (
        f"{provenance(report, split)}; {size.n_samples:,} samples of {size.n_users:,} users, "
        f"{number(size.likes, '.1%')} likes"
    )
    columns = ("Model", *(("Fitted on",) if report.read else ()), *(("Seed",) if several else ()))
    yield Table("scores", "Metrics", where, (*columns, *METRICS), tuple(rows), n_text=1 + bool(report.read))


def _comparison_tables(report: CtrReport, split: Split) -> Iterator[Table]:
    """One table per pair of models."""
    for compared in report.comparisons:
        if compared.split != split:
            continue
        candidate, baseline = (report.of(model, split) for model in (compared.candidate, compared.baseline))
        rows = tuple(
            (
                name,
                reading(name, own),
                number(candidate[name].value),
                number(baseline[name].value),
                number(own.value, "+.4f"),
                _range(own, "+.4f"),
            )
            for name, own in compared.differences.items()
        )
        header = ("Metric", "The interval", compared.candidate, compared.baseline, "Difference", "95% interval")
        title = f"{compared.candidate} minus {compared.baseline}"
        yield Table("comparisons", title, provenance(report, split), header, rows, n_text=2)


def _cause_tables(report: CtrReport, split: Split) -> Iterator[Table]:
    """One row a pair: what the model gains over itself without what is said to help."""
    rows = tuple(
        (
            one.candidate,
            one.baseline,
            reading("AUC", one.differences["AUC"]),
            *(f"{number(own.value, '+.4f')} ({_range(own, '+.4f')})" for own in _shown(one)),
        )
        for one in report.causes
        if one.split == split
    )
    if rows:
        header = ("Model", "minus", "The interval of AUC", *GROUP_METRICS)
        yield Table("controls", "What retrieval is worth", provenance(report, split), header, rows, n_text=3)


def _shown(compared: CtrComparison) -> list[Estimate]:
    return [compared.differences[name] for name in GROUP_METRICS]


def _range(estimate: Estimate, spec: str = ".4f") -> str:
    return f"{number(estimate.low, spec)} to {number(estimate.high, spec)}"


def _group_tables(report: CtrReport, split: Split) -> Iterator[Table]:
    where = provenance(report, split)
    groups = [group for group in report.groups if group.split == split]
    sizes = tuple(
        (g.grouping, g.group, g.description, f"{g.n_samples:,}", f"{g.n_users:,}", number(g.likes, ".1%"))
        for g in groups
    )
    columns = ("Grouping", "Group", "What it holds", "Samples", "Users", "Likes")
    yield Table("groups", "Groups", where, columns, sizes, n_text=3)
    figures = {(s.model, s.grouping, s.group): s.metrics for s in report.group_scores if s.split == split}
    for grouping in dict.fromkeys(group.grouping for group in groups):
        names = [group.group for group in groups if group.grouping == grouping]
        cells = [(metric, name) for metric in GROUP_METRICS for name in names]
        rows = tuple(
            (model, *(number(figures[model, grouping, name][metric]) for metric, name in cells))
            for model in ordered_models(report, split)
        )
        header = ("Model", *(f"{metric}, {name}" for metric, name in cells))
        yield Table("groups", f"By {grouping}", where, header, rows)


def _calibration_table(report: CtrReport) -> Iterator[Table]:
    """The bins of the chosen model and of the yardstick."""
    split = report.splits[0]
    of_model: dict[str, Calibration] = {own.model: own for own in report.calibrations if own.split == split}
    models = [model for model in dict.fromkeys((report.chosen, report.yardstick)) if model in of_model]
    if not models:
        return
    rows = []
    for bins in zip(*(of_model[model].bins for model in models), strict=True):
        cells = [(f"{one.n_samples:,}", number(one.mean_probability, ".3f"), number(one.likes, ".3f")) for one in bins]
        rows.append((f"{bins[0].low:.1f} to {bins[0].high:.1f}", *(cell for of_one in cells for cell in of_one)))
    columns = [f"{what}, {model}" for model in models for what in ("Samples", "Mean probability", "Share of likes")]
    yield Table("calibration", "Bins", provenance(report, split), ("Probability", *columns), tuple(rows))


def _heterogeneity_tables(report: CtrReport) -> Iterator[Table]:
    for split in dict.fromkeys(one.split for one in report.heterogeneity):
        figures = {(one.k, one.history): one.distinct_genres for one in report.heterogeneity if one.split == split}
        histories = list(dict.fromkeys(history for _, history in figures))
        rows = tuple(
            (f"K = {k}", *(number(figures.get((k, history), math.nan), ".2f") for history in histories))
            for k in sorted({k for k, _ in figures})
        )
        header = ("Behaviours kept", *histories)
        yield Table("heterogeneity", "Distinct genres", provenance(report, split), header, rows)


def _similarity_tables(report: CtrReport) -> Iterator[Table]:
    for split in dict.fromkeys(one.split for one in report.similarity):
        rows = tuple((one.history, number(one.cosine)) for one in report.similarity if one.split == split)
        header = ("History", "Mean cosine to the target")
        yield Table("similarity", "Similarity", provenance(report, split), header, rows)


def _seed_table(report: CtrReport) -> Iterator[Table]:
    if not report.seed_summaries:
        return
    names = tuple(report.seed_summaries[0].mean)
    rows = [
        (
            f"tuned on {summary.mode}",
            summary.history,
            ", ".join(map(str, summary.seeds)),
            *(_spread(summary.mean[name], summary.deviation[name]) for name in names),
        )
        for summary in report.seed_summaries
    ]
    if report.yardstick:
        of_yardstick = report.of(report.yardstick, "test")
        rows.insert(0, (report.yardstick, UNDEFINED, UNDEFINED, *(number(of_yardstick[name].value) for name in names)))
    header = ("Training", "Evaluated on", "Seeds", *names)
    yield Table("seeds", "Mean ± standard deviation", provenance(report, "test"), header, tuple(rows), n_text=3)


def _spread(mean: float, deviation: float) -> str:
    return number(mean) if math.isnan(deviation) else f"{number(mean)} ± {number(deviation)}"
