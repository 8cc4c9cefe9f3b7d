"""The ranking report as data."""

from pydantic import Field

from rarec.reports.records import SHOWN_SPLITS, Effort, Figure, Record, Report, ReportedSplit, Text, TrainingCurve
from rarec.types import Protocol, Split


class Scores(Record):
    """Mean metrics of one model."""

    model: Text
    split: ReportedSplit
    protocol: Protocol
    n_users: int
    metrics: dict[str, Figure]


class GroupScores(Scores):
    """Mean metrics of one model over the users of one group."""

    grouping: Text
    group: Text
    description: Text


class Comparison(Record):
    """Candidate minus baseline in one metric, paired by user; see `rarec.metrics.significance`."""

    baseline: Text
    candidate: Text
    split: ReportedSplit
    protocol: Protocol
    metric: Text
    n_users: int
    baseline_mean: Figure
    candidate_mean: Figure
    difference: Figure
    ci_low: Figure
    ci_high: Figure
    confidence: float
    t_test_p: Figure
    wilcoxon_p: Figure
    reason: Text
    grouping: Text = ""
    group: Text = ""
    """Of the users compared; empty if they are all."""


class Recommended(Record):
    """Coverage and popularity of the first n recommendations; see `rarec.metrics.coverage`."""

    model: Text
    split: ReportedSplit
    protocol: Protocol
    n: int
    coverage: Figure
    mean_training_count: Figure
    mean_popularity_percentile: Figure


class RankingCurve(TrainingCurve):
    """The course of one ranking model's training."""

    protocol: Protocol = Field(description="Protocol of the metrics on the validation split.")

    @property
    def validation_label(self) -> str:
        """Label of the axis for validation metrics."""
        return f"validation metric ({self.protocol})"


class Published(Record):
    """Metrics that others published for the same data set, split and protocol."""

    source: Text
    split: ReportedSplit
    protocol: Protocol
    metrics: dict[str, Figure]


class RankingReport(Report):
    """Everything that the ranking report of a data set shows."""

    n_users: int
    n_items: int
    scores: tuple[Scores, ...]
    groups: tuple[GroupScores, ...]
    comparisons: tuple[Comparison, ...]
    causes: tuple[Comparison, ...] = Field(default=(), description="Comparisons with controls, over all users.")
    recommended: tuple[Recommended, ...]
    curves: tuple[RankingCurve, ...] = ()
    published: tuple[Published, ...] = ()
    efforts: tuple[Effort, ...] = ()
    summary: Text = ""
    """Who wins, by how much."""

    @property
    def splits(self) -> list[Split]:
        """The splits that have scores, test first."""
        present = {scores.split for scores in self.scores}
        return [split for split in SHOWN_SPLITS if split in present]
