"""Records that all reports are made of, for `report.json`. Undefined figures are NaN, and null in JSON."""

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from rarec.types import Split

Figure = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
"""A number; NaN if undefined, which is null in JSON."""


def _printable(text: str, *, keep: str = "") -> str:
    return "".join(character if character.isprintable() or character in keep else " " for character in text)


Text = Annotated[str, AfterValidator(_printable)]
"""Text to display on one line, without control characters, which a terminal would obey."""
Lines = Annotated[str, AfterValidator(lambda text: _printable(text, keep="\n"))]
"""Text to display on several lines, otherwise without control characters."""
SPLIT_NAMES: dict[Split, str] = {"train": "training", "valid": "validation", "test": "test"}
"""What reports call a split, on their pages and in `report.json`."""
SHOWN_SPLITS: tuple[Split, ...] = ("test", "valid")
"""The splits that reports show, in this order."""
ReportedSplit = Annotated[
    Split,
    BeforeValidator(lambda split: {name: key for key, name in SPLIT_NAMES.items()}.get(split, split)),
    PlainSerializer(lambda split: SPLIT_NAMES[split], when_used="json"),
]
"""A split; in JSON by its name in `SPLIT_NAMES`."""


class Record(BaseModel):
    """Frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Epoch(Record):
    """One epoch of training."""

    epoch: int
    loss: Figure
    validation: dict[str, Figure] = Field(default={}, description="Metrics on the validation split after this epoch.")


class Effort(Record):
    """What a training took, as its worker recorded it."""

    model: Text
    epochs: int
    best_epoch: int = Field(description="The epoch whose weights were kept.")
    seconds: Figure = Field(description="Wall-clock seconds of the whole training, validation included.")
    peak_memory_mib: Figure = Field(description="Highest memory of any of its processes.")
    validation: tuple[Figure, ...] = Field(
        default=(), description="After each epoch, the validation figure that chooses the epoch."
    )

    def seconds_to(self, goal: float) -> float:
        """Seconds until the validation figure reached ``goal``, if every epoch took as long; NaN if it never did."""
        reached = next((n for n, value in enumerate(self.validation, 1) if value >= goal), math.nan)
        return self.seconds * reached / self.epochs


class TrainingCurve(Record):
    """The course of one model's training."""

    model: Text
    epochs: tuple[Epoch, ...]
    best_epoch: int | None = Field(default=None, description="The epoch whose weights were kept.")

    @property
    def validation_label(self) -> str:
        """Label of the axis for validation metrics."""
        return "validation metric"


class Link(Record):
    """A link to another web page, such as the MLflow run."""

    label: Text
    url: str = Field(pattern=r"^https?://\S+$")


class Report(Record):
    """What all reports have in common."""

    dataset: Text
    data_version: Text
    seeds: dict[Text, int] = Field(description="Seed of each model's training.")
    split_rule: Text = Field(description="How training, validation and test were split, in words.")
    models: tuple[Text, ...] = Field(description="The models, in the order in which to show them.")
    links: tuple[Link, ...] = ()
    notes: tuple[Text, ...] = Field(default=(), description="Remarks, a sentence or two each.")

    @property
    def seed_text(self) -> str:
        """The seeds, for captions; a single number if all models share it."""
        if len(set(self.seeds.values())) == 1:
            return f"seed {next(iter(self.seeds.values()))}"
        return "seeds " + ", ".join(f"{seed} ({model})" for model, seed in self.seeds.items())
