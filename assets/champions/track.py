"""The interface of a track: what promotion, drift reports and rollback need to know about its models.

A track implements `ChampionTrack` and calls `champion_stages`, which declares its three assets and registers it in
`CHAMPION_TRACKS`; nothing else knows it. `candidate` compares the candidate with the champion; `drift` measures the
champion on new events.
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
    """Interactions on which models are evaluated.

    Attributes:
        interactions: the artifact that contains them.
        table: its clean table, sorted by user and time.
        rows: (E,) ascending rows of the table.
        label: (E,) whether each is a like.
        window: a description of them, in words and numbers, for the evidence.
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
    """Candidate against champion on the same events, and the text before and after the figures."""

    paired: PairedComparison
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Drift:
    """The content of a champion's drift report.

    Attributes:
        rows: of all new events.
        now: the champion's figures on the events that were scored; empty if none could be.
        how: which new events were scored, in words.
        verdict: the update that is due.
        reason: why, in words.
    """

    rows: IntArray
    now: dict[str, float]
    how: str
    verdict: Verdict
    reason: str


class ChampionTrack(Protocol, Generic[R, D]):
    """One kind of model. Its methods get a model's artifacts, by asset."""

    name: str
    """Name of the track and suffix of its registered models."""
    artifacts: tuple[str, ...]
    """Assets that a candidate may be built from: the dependencies of its asset."""
    kinds: frozenset[str]
    has_workers: bool
    """Whether scoring needs workers."""
    figure: str
    """The figure that decides."""
    promotion: type[R]
    """Settings of the candidate: the promotion rule."""
    drift: type[D]
    """Settings of the drift report: the rule for updates."""
    drift_asset: str
    follows: tuple[str, ...]
    """Assets that are rebuilt when the champion changes."""
    unit: str
    """What models are compared on, for the check's description."""

    def candidate(self, request: Request[R], champion: Version | None) -> dict[str, Artifact]:
        """The model that could be the next champion."""

    def interactions(self, request: Request[R], candidate: Artifacts) -> Artifact:
        """The interactions on which models are compared."""

    def kind(self, settings: R) -> Kind:
        """How the candidate was made."""

    def events(self, job: Job[R], candidate: Artifacts, opponent: Artifacts | None, interactions: Artifact) -> Events:
        """The events on which both models are scored; neither was trained on them."""

    def answers(self, job: Job[Any], name: str, model: Artifacts, events: Events) -> Float64Array:
        """(E,) the model's prediction for each event; ``name`` distinguishes the models of a job."""

    def figures(self, model: Artifacts, answers: Float64Array, events: Events, seed: int) -> dict[str, float]:
        """Figures of these predictions, and shares of unknown items and users."""

    def compare(self, champion: Float64Array, candidate: Float64Array, events: Events, seed: int) -> Compared:
        """The comparison that the rule decides on."""

    def log_model(self, job: Job[R], model: Artifacts) -> str:
        """URI of the model in MLflow; the model is logged now if it was not logged after training."""

    def measure(self, job: Job[D], champion: Champion, table: pd.DataFrame, since: int) -> Drift:
        """The champion's drift on the events since ``since`` (seconds)."""


CHAMPION_TRACKS: dict[str, ChampionTrack[Any, Any]] = {}
"""The tracks by name, as `champion_stages` registers them."""

# For Dagster's automation sensor: once per change of content, whichever run made the change.
ON_CHANGE = (
    dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed()).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)
