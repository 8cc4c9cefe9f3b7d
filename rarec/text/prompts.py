"""Prompts as sequences of parts: a profile, a heading, one line per behaviour, a question.

A part is written once, however many prompts share it: a line for each (item, rating) that occurs, a question for each
item, a profile for each user. A prompt is a list of part numbers. It is assembled only when needed, as text or tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from rarec.config import Settings
from rarec.data.templates import Template, item_texts, profile_texts, rating_text
from rarec.types import Distances, IntArray

NO_PART = -1
CATALOGUE = "catalogue.parquet"


class TextSettings(Settings):
    """Settings of the prompts."""

    behaviours: int = Field(
        default=30, ge=1, description="K, behaviours in a prompt: the most recent, or the retrieved ones."
    )


@dataclass(frozen=True)
class Catalogue:
    """(I,) names of the items in prompts, and their descriptions."""

    names: list[str]
    descriptions: list[str]

    def save(self, folder: Path) -> None:
        """Write them as a table into ``folder``."""
        pd.DataFrame({"name": self.names, "description": self.descriptions}).to_parquet(folder / CATALOGUE)

    @classmethod
    def load(cls, folder: Path) -> "Catalogue":
        """Read what `save` wrote."""
        table = pd.read_parquet(folder / CATALOGUE)
        return cls(table["name"].tolist(), table["description"].tolist())


@dataclass(frozen=True)
class PromptParts:
    """The parts of a data set's prompts: profiles, then the heading, then lines, then questions.

    Attributes:
        texts: (P,) text of every part.
        profiles, lines, questions: Number of the first part of each kind; the heading comes before the lines.
        line_of: (M,) the line of each interaction, counted from ``lines``.
    """

    FILES: ClassVar = ("parts.parquet", "kinds.npy", "line_of.npy")

    texts: list[str]
    profiles: int
    lines: int
    questions: int
    line_of: IntArray

    def of(self, users: IntArray, targets: IntArray, position: IntArray, distances: Distances) -> IntArray:
        """(B, K + 3) part numbers of B prompts; `NO_PART` if a history is shorter.

        Args:
            users, targets: (B,) user and item.
            position: (B,) interaction of each target.
            distances: (B, K) of each behaviour from its target, 0 for none.
        """
        behaviours = position[:, None] - distances.astype(np.int64)
        history = np.where(distances > 0, self.lines + self.line_of[behaviours], NO_PART)
        heading = np.full(len(users), self.lines - 1)
        return np.column_stack([self.profiles + users, heading, history, self.questions + targets])

    def text(self, parts: IntArray) -> str:
        """The text of one prompt, a row of `of`."""
        return "".join(self.texts[part] for part in parts.tolist() if part != NO_PART)

    def save(self, folder: Path) -> None:
        """Write the texts as parquet and the numbers as .npy into ``folder``."""
        pd.DataFrame({"text": self.texts}).to_parquet(folder / "parts.parquet", index=False)
        np.save(folder / "kinds.npy", np.array([self.profiles, self.lines, self.questions]))
        np.save(folder / "line_of.npy", self.line_of.astype(np.int32))

    @classmethod
    def load(cls, folder: Path) -> "PromptParts":
        """Read what `save` wrote."""
        texts = pd.read_parquet(folder / "parts.parquet")["text"].tolist()
        profiles, lines, questions = np.load(folder / "kinds.npy").tolist()
        return cls(texts, profiles, lines, questions, np.load(folder / "line_of.npy").astype(np.int64))


def build_parts(
    template: Template, items: pd.DataFrame, users: pd.DataFrame, item_index: IntArray, rating: npt.ArrayLike
) -> PromptParts:
    """Make all parts of a data set's prompts.

    Args:
        items, users: The clean tables.
        item_index, rating: (M,) item and rating of each interaction, sorted by (user, time).

    Raises:
        InputError: An item has no text.
    """
    names = item_texts(items, template.item)
    profiles = profile_texts(users, template)
    values, code = np.unique(np.asarray(rating), return_inverse=True)
    pairs, line_of = np.unique(item_index.astype(np.int64) * len(values) + code, return_inverse=True)
    ratings = [rating_text(value) for value in values.tolist()]
    lines = [
        template.behaviour.format(item=names[pair // len(values)], rating=ratings[pair % len(values)])
        for pair in pairs.tolist()
    ]
    questions = [template.question.format(item=name) for name in names]
    first_line = len(profiles) + 1
    return PromptParts(
        [*profiles, template.heading, *lines, *questions], 0, first_line, first_line + len(lines), line_of
    )
