"""The CTR report as data."""

from typing import Literal

from pydantic import Field

from rarec.rella.training_samples import History, Mode
from rarec.reports.records import SHOWN_SPLITS, Figure, Lines, Record, Report, ReportedSplit, Text, TrainingCurve
from rarec.types import Split


class Estimate(Record):
    """A figure and its 95 % interval over resampled users."""

    value: Figure
    low: Figure
    high: Figure

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0; False where it is undefined."""
        return self.low > 0 or self.high < 0


class SplitSize(Record):
    """What one split holds."""

    split: ReportedSplit
    n_samples: int
    n_users: int
    likes: Figure = Field(description="Share of the samples that are likes.")


class CtrScores(Record):
    """Metrics of one model on one split, by the names of `ctr.METRICS`."""

    model: Text
    split: ReportedSplit
    metrics: dict[str, Estimate]


class CtrComparison(Record):
    """Candidate minus baseline on the same samples, over the same draws of users."""

    baseline: Text
    candidate: Text
    split: ReportedSplit
    differences: dict[str, Estimate]


class SampleGroup(Record):
    """Samples of one split that are alike in their history or their target item."""

    split: ReportedSplit
    grouping: Text
    group: Text
    description: Text = Field(description="What belongs to the group, with its edges.")
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
    """Samples whose probabilities lie in one bin."""

    low: float
    high: float
    n_samples: int
    mean_probability: Figure
    likes: Figure


class Calibration(Record):
    """How often what one model gave some probability was liked; see `ctr.calibration`."""

    model: Text
    split: ReportedSplit
    bins: tuple[CalibrationBin, ...]


class Heterogeneity(Record):
    """How varied the histories in the prompts are."""

    history: History
    k: int = Field(ge=1, description="Behaviours kept.")
    distinct_genres: Figure = Field(description="Mean number of different genres among the K behaviours kept.")
    split: ReportedSplit = "test"


class Similarity(Record):
    """How like its target the history in a prompt is."""

    history: Literal["retrieved", "recent", "random"]
    cosine: Figure = Field(description="Mean cosine similarity of the behaviours' vectors to the target's.")
    split: ReportedSplit = "test"


class SeedRun(Record):
    """One of several trainings that differ in their seed only."""

    mode: Mode = Field(description="Histories of the prompts it was tuned on.")
    seed: int
    history: History = Field(description="Histories of the prompts it was evaluated on.")
    model: str = Field(description="Name of its outcome.")


class SeedSummary(Record):
    """Mean and sample standard deviation (n - 1) over seeds, on the test split."""

    mode: Text
    history: Text
    seeds: tuple[int, ...]
    mean: dict[str, Figure]
    deviation: dict[str, Figure] = Field(description="NaN for one seed.")


class PromptPreview(Record):
    """One prompt, to look at."""

    title: Text
    text: Lines


class CtrReport(Report):
    """Everything the CTR report of one data set shows."""

    resamples: int = Field(description="Draws of users behind each interval.")
    sizes: tuple[SplitSize, ...]
    chosen: Text = Field(description="The model of the cards, compared with the yardstick.")
    yardstick: Text | None = Field(description="The baseline that every table shows.")
    scores: tuple[CtrScores, ...]
    comparisons: tuple[CtrComparison, ...]
    groups: tuple[SampleGroup, ...]
    group_scores: tuple[CtrGroupScores, ...]
    calibrations: tuple[Calibration, ...]
    heterogeneity: tuple[Heterogeneity, ...] = ()
    similarity: tuple[Similarity, ...] = ()
    seed_summaries: tuple[SeedSummary, ...] = ()
    curves: tuple[TrainingCurve, ...] = ()
    prompts: tuple[PromptPreview, ...] = ()

    @property
    def splits(self) -> list[Split]:
        """The splits that have scores, test first."""
        present = {size.split for size in self.sizes}
        return [split for split in SHOWN_SPLITS if split in present]

    @property
    def seed_text(self) -> str:
        """Words for captions; which model has which seed is told once, at the top of the page."""
        seeds = sorted(set(self.seeds.values()))
        if not seeds:
            return "no seed"
        return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))

    def of(self, model: str, split: Split) -> dict[str, Estimate]:
        """The metrics of one model on one split; empty where it has none."""
        found = (scores.metrics for scores in self.scores if (scores.model, scores.split) == (model, split))
        return next(found, {})

    def compared(self, baseline: str | None, candidate: str, split: Split) -> CtrComparison | None:
        """The comparison of two models on one split, if there is one."""
        found = (c for c in self.comparisons if (c.baseline, c.candidate, c.split) == (baseline, candidate, split))
        return next(found, None)
