"""Grids of settings: all combinations of the given values, and how their trials are ranked."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import model_validator

from rarec.config import Settings, require_distinct


class Grid(Settings):
    """Base of what a sweep tries: every field that is a tuple lists values of one setting."""

    @model_validator(mode="after")
    def _consistent(self) -> "Grid":
        for name, values in self.lists().items():
            require_distinct(name, values)
        return self

    def lists(self) -> dict[str, tuple[Any, ...]]:
        """The values of each setting that varies."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), tuple)}

    def trials(self) -> Iterator[dict[str, Any]]:
        """All combinations; the last setting varies fastest."""
        lists = self.lists()
        for values in itertools.product(*lists.values()):
            yield dict(zip(lists, values, strict=True))


def trial_name(trial: Mapping[str, Any]) -> str:
    """Name of a trial's folder and run: `memories-10-alpha-0.5`."""
    return "-".join(f"{name}-{value}" for name, value in trial.items())


def leaderboard(rows: Sequence[Mapping[str, Any]], choice: str) -> pd.DataFrame:
    """The trials, with the best ``choice`` first; ties in the order in which they were tried."""
    return pd.DataFrame(rows).sort_values(choice, ascending=False, kind="stable", ignore_index=True)
