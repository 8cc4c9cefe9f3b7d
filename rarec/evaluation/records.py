"""The ranking report as data: what `report.json` holds. Figures that are undefined are NaN here and null in JSON."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Figure = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
"""A number, NaN where undefined; null in JSON."""
Text = Annotated[
    str, AfterValidator(lambda text: "".join(character if character.isprintable() else " " for character in text))
]
"""Text for display: on one line, and without control characters, which a terminal would obey."""
Split = Literal["validation", "test"]
Protocol = Literal["unmasked", "masked"]
"""Candidates of the ranking: all items, or all but those the user has seen (the target always stays)."""


class Record(BaseModel):
    """Frozen record with no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Scores(Record):
    """Mean metrics of one model."""

    model: Text
    split: Split
    protocol: Protocol
    n_users: int
    metrics: dict[str, Figure]


class GroupScores(Scores):
    """Mean metrics of one model over the users of one group."""

    grouping: Text
    group: Text
    description: Text


class Comparison(Record):
    """Candidate minus baseline on one metric, paired by user; see `significance.compare_paired`."""

    baseline: Text
    candidate: Text
    split: Split
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


class Recommended(Record):
    """Coverage and popularity of the first n recommendations; see `recommendations.recommendation_stats`."""

    model: Text
    split: Split
    protocol: Protocol
    n: int
    coverage: Figure
    mean_training_count: Figure
    mean_popularity_percentile: Figure


class Epoch(Record):
    """One epoch of training."""

    epoch: int
    loss: Figure
    validation: dict[str, Figure] = Field(default={}, description="Metrics on the validation split after this epoch.")


class TrainingCurve(Record):
    """The course of one model's training."""

    model: Text
    protocol: Protocol = Field(description="Protocol of the metrics on the validation split.")
    epochs: tuple[Epoch, ...]
    best_epoch: int | None = Field(default=None, description="The epoch whose weights were kept.")


class Published(Record):
    """Figures that others published for the same data set, split and protocol."""

    source: Text
    split: Split
    protocol: Protocol
    metrics: dict[str, Figure]


class Link(Record):
    """A web page to go on to, such as the MLflow run."""

    label: Text
    url: str = Field(pattern=r"^https?://\S+$")


class RankingReport(Record):
    """Everything the ranking report of one data set shows."""

    dataset: Text
    data_version: Text
    seeds: dict[Text, int] = Field(description="Seed of each model's training.")
    split_rule: Text = Field(description="How training, validation and test were cut apart, in words.")
    n_users: int
    n_items: int
    models: tuple[Text, ...] = Field(description="In the order in which to show them.")
    scores: tuple[Scores, ...]
    groups: tuple[GroupScores, ...]
    comparisons: tuple[Comparison, ...]
    recommended: tuple[Recommended, ...]
    curves: tuple[TrainingCurve, ...] = ()
    published: tuple[Published, ...] = ()
    links: tuple[Link, ...] = ()
    notes: tuple[Text, ...] = Field(default=(), description="Remarks of the caller, a sentence or two each.")

    @property
    def seed_text(self) -> str:
        """Words for captions: one number where all models share it."""
        if len(set(self.seeds.values())) == 1:
            return f"seed {next(iter(self.seeds.values()))}"
        return "seeds " + ", ".join(f"{seed} ({model})" for model, seed in self.seeds.items())

    @property
    def splits(self) -> list[Split]:
        """The splits that have scores, test first."""
        present = {scores.split for scores in self.scores}
        order: tuple[Split, ...] = ("test", "validation")
        return [split for split in order if split in present]
