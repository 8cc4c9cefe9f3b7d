"""The CTR report as data."""

from typing import Literal

from pydantic import Field

from rarec.rella.training_samples import History, Mode
from rarec.reports.records import (
    SHOWN_SPLITS,
    Effort,
    Figure,
    Lines,
    Record,
    Report,
    ReportedSplit,
    Text,
    TrainingCurve,
)
from rarec.types import Split


class Estimate(Record):
    """A figure and its 95 % interval over resampled users."""

    value: Figure
    low: Figure
    high: Figure

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0; False if it is undefined."""
        return self.low > 0 or self.high < 0


class SplitSize(Record):
    """Size of a split."""

    split: ReportedSplit
    n_samples: int
    n_users: int
    likes: Figure = Field(description="Share of the samples that are likes.")


class CtrScores(Record):
    """Metrics of one model on one split, by the names in `rarec.metrics.ctr.METRICS`."""

    model: Text
    split: ReportedSplit
    metrics: dict[str, Estimate]


class CtrComparison(Record):
    """Candidate minus baseline on the same samples, with the same draws of users."""

    baseline: Text
    candidate: Text
    split: ReportedSplit
    differences: dict[str, Estimate]


class SampleGroup(Record):
    """Samples of a split with similar histories or targets."""

    split: ReportedSplit
    grouping: Text
    group: Text
    description: Text = Field(description="What belongs to the group, and its edges.")
    n_samples: int
    n_users: int
    likes: Figure


class CtrGroupScores(Record):
    """AUC and LogLoss of one model on the samples of one `SampleGroup`."""

    model: Text
    split: ReportedSplit
    grouping: Text
    group: Text
    metrics: dict[str, Figure]


class CalibrationBin(Record):
    """Samples with probabilities in one bin."""

    low: float
    high: float
    n_samples: int
    mean_probability: Figure
    likes: Figure


class Calibration(Record):
    """Share of likes by probability, for one model; see `rarec.metrics.ctr.calibration`."""

    model: Text
    split: ReportedSplit
    bins: tuple[CalibrationBin, ...]


class Heterogeneity(Record):
    """How varied the histories in the prompts are."""

    history: History
    k: int = Field(ge=1, description="Behaviours kept.")
    distinct_genres: Figure = Field(description="Mean number of distinct genres among the K behaviours kept.")
    split: ReportedSplit = "test"


class Similarity(Record):
    """How similar the histories in prompts are to their targets."""

    history: Literal["retrieved", "recent", "random"]
    cosine: Figure = Field(description="Mean cosine similarity between behaviours and target.")
    split: ReportedSplit = "test"


class SeedRun(Record):
    """One of several trainings that differ only in their seed."""

    mode: Mode = Field(description="Histories of the prompts it was tuned on.")
    seed: int
    history: History = Field(description="Histories of the prompts it was evaluated on.")
    model: str = Field(description="Name of its outcome.")


class SeedSummary(Record):
    """Mean and standard deviation (with n - 1) over seeds, on the test split."""

    mode: Text
    history: Text
    seeds: tuple[int, ...]
    mean: dict[str, Figure]
    deviation: dict[str, Figure] = Field(description="NaN for one seed.")


class PromptPreview(Record):
    """An example of a prompt."""

    title: Text
    text: Lines


class CtrReport(Report):
    """Everything that the CTR report of a data set shows."""

    resamples: int = Field(description="Number of draws of users behind each interval.")
    sizes: tuple[SplitSize, ...]
    chosen: Text = Field(description="The model on the cards, which is compared with the yardstick.")
    yardstick: Text | None = Field(description="The baseline that every table shows.")
    read: dict[str, Text] = Field(default={}, description="What of the training data each model was fitted on.")
    scores: tuple[CtrScores, ...]
    comparisons: tuple[CtrComparison, ...]
    causes: tuple[CtrComparison, ...] = Field(default=(), description="Comparisons with controls.")
    summary: Text = Field(default="", description="Who wins, the chosen model or the yardstick, and by how much.")
    groups: tuple[SampleGroup, ...]
    group_scores: tuple[CtrGroupScores, ...]
    calibrations: tuple[Calibration, ...]
    heterogeneity: tuple[Heterogeneity, ...] = ()
    similarity: tuple[Similarity, ...] = ()
    seed_summaries: tuple[SeedSummary, ...] = ()
    curves: tuple[TrainingCurve, ...] = ()
    efforts: tuple[Effort, ...] = ()
    prompts: tuple[PromptPreview, ...] = ()

    @property
    def splits(self) -> list[Split]:
        """The splits that have scores, test first."""
        present = {size.split for size in self.sizes}
        return [split for split in SHOWN_SPLITS if split in present]

    @property
    def seed_text(self) -> str:
        """The seeds, for captions. The page lists the seed of each model once."""
        seeds = sorted(set(self.seeds.values()))
        if not seeds:
            return "no seed"
        return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))

    def of(self, model: str, split: Split) -> dict[str, Estimate]:
        """Metrics of one model on one split; empty if it has none."""
        found = (scores.metrics for scores in self.scores if (scores.model, scores.split) == (model, split))
        return next(found, {})

    def compared(self, baseline: str | None, candidate: str, split: Split) -> CtrComparison | None:
        """The comparison of two models on one split, if there is one."""
        found = (c for c in self.comparisons if (c.baseline, c.candidate, c.split) == (baseline, candidate, split))
        return next(found, None)
