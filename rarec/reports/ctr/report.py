"""The CTR report: built from probabilities, written as JSON, HTML page and plots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rarec.errors import InputError
from rarec.metrics.ctr import METRICS, UserBootstrap, calibration, ctr_metrics, named_intervals
from rarec.metrics.groups import Groups
from rarec.reports.ctr.groups import history_groups, target_groups
from rarec.reports.ctr.inputs import CtrOutcome, Samples, check_names, checked_probabilities, splits_of
from rarec.reports.ctr.plots import ctr_plots
from rarec.reports.ctr.records import (
    Calibration,
    CalibrationBin,
    CtrComparison,
    CtrGroupScores,
    CtrReport,
    CtrScores,
    Estimate,
    Heterogeneity,
    PromptPreview,
    SampleGroup,
    SeedRun,
    SeedSummary,
    Similarity,
)
from rarec.reports.ctr.tables import below_chance, ctr_cards, ctr_markdown_tables, ctr_tables, ctr_text_tables, summary
from rarec.reports.page import ReportPaths, write_page
from rarec.reports.records import SHOWN_SPLITS, Effort, Epoch, Link, TrainingCurve
from rarec.types import BoolArray, Float64Array, Split

__all__ = [
    "CtrOutcome",
    "CtrReport",
    "Epoch",
    "Heterogeneity",
    "Link",
    "PromptPreview",
    "ReportPaths",
    "SeedRun",
    "Similarity",
    "TrainingCurve",
    "build_ctr_report",
    "ctr_markdown_tables",
    "ctr_text_tables",
    "write_ctr_report",
]

SEED_METRICS = ("AUC", "LogLoss", "ACC")
BINS = 10


def build_ctr_report(
    outcomes: Sequence[CtrOutcome],
    *,
    labels: Mapping[Split, npt.ArrayLike],
    users: Mapping[Split, npt.ArrayLike],
    history_length: Mapping[Split, npt.ArrayLike],
    target_count: Mapping[Split, npt.ArrayLike],
    dataset: str,
    data_version: str,
    seeds: Mapping[str, int],
    split_rule: str,
    yardstick: str | None = None,
    chosen: str | None = None,
    read: Mapping[str, str] | None = None,
    comparisons: Sequence[tuple[str, str]] = (),
    controls: Sequence[tuple[str, str]] = (),
    heterogeneity: Sequence[Heterogeneity] = (),
    similarity: Sequence[Similarity] = (),
    seed_runs: Sequence[SeedRun] = (),
    curves: Sequence[TrainingCurve] = (),
    efforts: Sequence[Effort] = (),
    prompts: Sequence[PromptPreview] = (),
    links: Sequence[Link] = (),
    notes: Sequence[str] = (),
    resamples: int = 1000,
) -> CtrReport:
    """Compute all figures of the report.

    Args:
        outcomes: One per model and split. Models are shown in the order of their first appearance.
        labels: (N,) by split, whether each sample was liked.
        users: (N,) by split, user of each sample. Users are drawn whole for the intervals.
        history_length: (N,) by split, behaviours before each sample.
        target_count: (N,) by split, training interactions of the target item, 0 for a new item.
        dataset: Name of the data set.
        data_version: Version of the data that the models were evaluated on.
        seeds: Seed of each model's training; their sum seeds the bootstrap.
        split_rule: How training, validation and test were split, in words.
        yardstick: Model that every table shows, and that `chosen` is compared with.
        chosen: Model of the cards and bins. By default the one with the highest AUC on the validation split, or the
            last one if there is no such split; never the yardstick, if there is another.
        read: What of the training data each model was fitted on, in words.
        comparisons: (baseline, candidate) models to compare on every split that both have. (yardstick, chosen) is
            added.
        controls: (without, with) pairs that show what a model owes to its claimed cause. They share one table.
        heterogeneity: Mean number of genres in the histories of prompts.
        similarity: Mean cosine similarity between histories and targets.
        seed_runs: Trainings that differ in their seed. They are summarised by mode and history, if any has two seeds.
        curves: Training curves.
        efforts: What the trainings took.
        prompts: Examples of prompts.
        links: Links to other web pages.
        notes: Remarks to show on the page.
        resamples: Number of draws of users behind each interval.

    Raises:
        InputError: An array does not match the labels of its split, a probability is outside 0 to 1, a model appears
            twice on a split, or a name has no outcome.
    """
    samples = {split: Samples.of(split, labels, users, history_length, target_count) for split in splits_of(outcomes)}
    probabilities = checked_probabilities(outcomes, samples)
    models = tuple(dict.fromkeys(model for model, _ in probabilities))
    check_names(models, yardstick, chosen, samples, probabilities)
    lengths = history_groups({split: own.history_length for split, own in samples.items()})
    counts = target_groups({split: own.target_count for split, own in samples.items()})

    values = {key: ctr_metrics(p, samples[key[1]].label) for key, p in probabilities.items()}
    chosen = chosen or _best(models, yardstick, values)
    pairs = list(dict.fromkeys([*comparisons, *([(yardstick, chosen)] if yardstick and yardstick != chosen else [])]))
    drawn: dict[tuple[str, Split], Float64Array] = {}
    for split, own in samples.items():
        bootstrap = UserBootstrap(own.label, own.user, sum(seeds.values()), resamples)
        drawn |= {key: bootstrap.metrics(p) for key, p in probabilities.items() if key[1] == split}

    def compared(pairs: Sequence[tuple[str, str]]) -> tuple[CtrComparison, ...]:
        return tuple(
            CtrComparison(baseline=baseline, candidate=candidate, split=split, differences=differences)
            for baseline, candidate in pairs
            for split, differences in _differences(baseline, candidate, values, drawn)
        )

    every = compared(pairs)
    scores = tuple(
        CtrScores(model=model, split=split, metrics=_estimates(values[model, split], drawn[model, split]))
        for model, split in probabilities
    )
    groupings = [(split, groups) for split in samples for groups in (lengths[split], counts[split])]
    return CtrReport(
        dataset=dataset,
        data_version=data_version,
        seeds=dict(seeds),
        split_rule=split_rule,
        models=models,
        resamples=resamples,
        sizes=tuple(own.size(split) for split, own in samples.items()),
        chosen=chosen,
        yardstick=yardstick,
        read=dict(read or {}),
        scores=scores,
        comparisons=every,
        causes=compared(controls),
        summary=" ".join(filter(None, (summary(every, yardstick, chosen), below_chance(scores)))),
        groups=tuple(group for split, groups in groupings for group in _groups(split, groups, samples[split])),
        group_scores=tuple(
            scores
            for split, groups in groupings
            for model, on in probabilities
            if on == split
            for scores in _group_scores(model, split, groups, probabilities[model, split], samples[split].label)
        ),
        calibrations=tuple(
            _calibration(model, split, p, samples[split].label) for (model, split), p in probabilities.items()
        ),
        heterogeneity=tuple(heterogeneity),
        similarity=tuple(similarity),
        seed_summaries=_seed_summaries(seed_runs, values),
        curves=tuple(curves),
        efforts=tuple(efforts),
        prompts=tuple(prompts),
        links=tuple(links),
        notes=tuple(notes),
    )


def write_ctr_report(report: CtrReport, folder: Path) -> ReportPaths:
    """Write the report as JSON, page and plots into `folder`; see `page.write_page`."""
    return write_page(folder, "ctr.html", report, ctr_cards(report), ctr_tables(report), ctr_plots(report))


def _best(models: Sequence[str], yardstick: str | None, values: Mapping[tuple[str, Split], Float64Array]) -> str:
    """The model with the highest AUC on the validation split; the last one if there is no such split."""
    others = [model for model in models if model != yardstick] or list(models)
    rated = [model for model in others if (model, "valid") in values]
    aucs = [values[model, "valid"][0] for model in rated]
    return rated[int(np.nanargmax(aucs))] if not np.isnan(aucs).all() else others[-1]


def _estimates(value: Float64Array, drawn: Float64Array) -> dict[str, Estimate]:
    return {name: Estimate(**asdict(interval)) for name, interval in named_intervals(value, drawn).items()}


def _differences(
    baseline: str,
    candidate: str,
    values: Mapping[tuple[str, Split], Float64Array],
    drawn: Mapping[tuple[str, Split], Float64Array],
) -> Iterator[tuple[Split, dict[str, Estimate]]]:
    """Candidate minus baseline, on every split that both have."""
    common = [split for split in SHOWN_SPLITS if (baseline, split) in values and (candidate, split) in values]
    if not common:
        raise InputError(f"{baseline} and {candidate} cannot be compared, as they have no split in common.")
    for split in common:
        value = values[candidate, split] - values[baseline, split]
        yield split, _estimates(value, drawn[candidate, split] - drawn[baseline, split])


def _groups(split: Split, groups: Groups, samples: Samples) -> Iterator[SampleGroup]:
    for number, (label, description) in enumerate(zip(groups.labels, groups.descriptions, strict=True)):
        members = groups.index == number
        yield SampleGroup(
            split=split,
            grouping=groups.grouping,
            group=label,
            description=description,
            n_samples=int(members.sum()),
            n_users=len(np.unique(samples.user[members])),
            likes=float(samples.label[members].mean()) if members.any() else np.nan,
        )


def _group_scores(
    model: str, split: Split, groups: Groups, p: Float64Array, label: BoolArray
) -> Iterator[CtrGroupScores]:
    for number, group in enumerate(groups.labels):
        members = groups.index == number
        auc, loss = ctr_metrics(p[members], label[members])[:2] if members.any() else (np.nan, np.nan)
        metrics = {"AUC": float(auc), "LogLoss": float(loss)}
        yield CtrGroupScores(model=model, split=split, grouping=groups.grouping, group=group, metrics=metrics)


def _calibration(model: str, split: Split, p: Float64Array, label: BoolArray) -> Calibration:
    bins = tuple(
        CalibrationBin(low=b / BINS, high=(b + 1) / BINS, n_samples=int(n), mean_probability=mean, likes=share)
        for b, (mean, share, n) in enumerate(zip(*calibration(p, label, BINS), strict=True))
    )
    return Calibration(model=model, split=split, bins=bins)


def _seed_summaries(
    runs: Sequence[SeedRun], values: Mapping[tuple[str, Split], Float64Array]
) -> tuple[SeedSummary, ...]:
    """One summary per mode and history; none at all if no mode has two seeds."""
    members: dict[tuple[str, str], dict[int, Float64Array]] = {}
    for run in runs:
        if (run.model, "test") not in values:
            raise InputError(f"The run with seed {run.seed} names {run.model}, which has no outcome on test.")
        of_seed = members.setdefault((run.mode, run.history), {})
        if run.seed in of_seed:
            raise InputError(f"There are two runs of {run.mode} on {run.history} with seed {run.seed}; give only one.")
        of_seed[run.seed] = values[run.model, "test"]
    if not any(len(of_seed) > 1 for of_seed in members.values()):
        return ()
    return tuple(
        SeedSummary(
            mode=mode,
            history=history,
            seeds=tuple(of_seed),
            mean=_seed_metrics(np.mean(list(of_seed.values()), 0)),
            deviation=_seed_metrics(
                np.std(list(of_seed.values()), 0, ddof=1) if len(of_seed) > 1 else np.full(len(METRICS), np.nan)
            ),
        )
        for (mode, history), of_seed in members.items()
    )


def _seed_metrics(figures: Float64Array) -> dict[str, float]:
    return {name: float(figures[METRICS.index(name)]) for name in SEED_METRICS}
