"""What a track says of itself, so that its models can be promoted, measured and taken back.

A track implements `ChampionTrack`, calls `champion_stages` for its three assets and stands in `TRACKS`; nothing else
knows it. The candidate is compared with the champion in `candidate`, the champion measured on new events in `drift`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import dagster as dg
import numpy as np
import pandas as pd

from assets.framework.champion import Champion
from assets.framework.stage import Job, Request
from rarec.champions.drift import Verdict
from rarec.champions.promotion import Kind, Rule
from rarec.config import Settings
from rarec.metrics.significance import PairedComparison
from rarec.types import Float64Array, IntArray
from resources.artifacts.store import Artifact
from resources.mlflow.registry import Version

R = TypeVar("R", bound=Rule)
D = TypeVar("D", bound=Settings)
Artifacts = Mapping[str, Artifact]


@dataclass(frozen=True)
class Events:
    """Interactions about which models are asked.

    Attributes:
        interactions: the artifact that they stand in.
        table: its clean table, sorted by user and time.
        rows: (E,) ascending rows of the table.
        label: (E,) whether each is a like.
        window: in words and numbers what they are, as evidence keeps it.
    """

    interactions: Artifact
    table: pd.DataFrame
    rows: IntArray
    label: np.ndarray
    window: Mapping[str, Any]

    @property
    def asked(self) -> pd.DataFrame:
        """(E, ...) the rows themselves."""
        return self.table.iloc[self.rows]


@dataclass(frozen=True)
class Compared:
    """Candidate against champion on the same events, and what to say before and after the figures."""

    paired: PairedComparison
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Drift:
    """What a champion's drift report says.

    Attributes:
        rows: of all new events.
        now: the champion's figures on those that were judged; empty if none could be.
        how: which new events were judged, in words.
        verdict: the step that is asked for.
        reason: why, in words.
    """

    rows: IntArray
    now: dict[str, float]
    how: str
    verdict: Verdict
    reason: str


class ChampionTrack(Protocol, Generic[R, D]):
    """One kind of model. Its methods get the artifacts that a model is made of, by asset."""

    name: str
    """Of the track and of its registered models."""
    artifacts: tuple[str, ...]
    """What a candidate may be made of: dependencies of its asset."""
    kinds: frozenset[str]
    scores: bool
    """Whether asking a model takes workers."""
    figure: str
    """The figure that decides."""
    promotion: type[R]
    """Settings of the candidate: the rule by which it passes."""
    drift: type[D]
    """Settings of the drift report: the rule that asks for a step."""
    drift_asset: str
    follows: tuple[str, ...]
    """Assets that are made again when the champion changes."""
    unit: str
    """On what models are compared, for the check's description."""

    def candidate(self, request: Request[R], champion: Version | None) -> dict[str, Artifact]:
        """The model that could be the next champion."""

    def interactions(self, request: Request[R], candidate: Artifacts) -> Artifact:
        """The interactions on which models are compared."""

    def kind(self, settings: R) -> Kind:
        """How the candidate came about."""

    def events(self, job: Job[R], candidate: Artifacts, opponent: Artifacts | None, interactions: Artifact) -> Events:
        """What both models are asked about: nothing that either of them was trained on."""

    def answers(self, job: Job[Any], name: str, model: Artifacts, events: Events) -> Float64Array:
        """(E,) the model's answer about each event; ``name`` tells models of one job apart."""

    def figures(self, model: Artifacts, answers: Float64Array, events: Events, seed: int) -> dict[str, float]:
        """Figures of these answers, and shares of what the model does not know."""

    def compare(self, champion: Float64Array, candidate: Float64Array, events: Events, seed: int) -> Compared:
        """The comparison that the rule decides on."""

    def log_model(self, job: Job[R], model: Artifacts) -> str:
        """URI of the model in MLflow, logged now if it was not logged when it was trained."""

    def measure(self, job: Job[D], champion: Champion, table: pd.DataFrame, since: int) -> Drift:
        """The champion on the events from ``since`` (seconds) on."""


TRACKS: dict[str, ChampionTrack[Any, Any]] = {}
"""The tracks by name, as `champion_stages` registers them."""

# For Dagster's automation sensor: once for each change of the content of what is measured, whoever brought it.
ON_CHANGE = (
    dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed()).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)
