"""The champion of a track, for stages that use or measure it."""

from dataclasses import dataclass
from typing import Any

from rarec.errors import InputError
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import Version, promote_job
from resources.mlflow.tracking import MlflowTracking

CHAMPION_PREFIX = "champion's "
"""Prefix of the inputs that record which champion an artifact was built from. They are never read, so `clean` need not
keep their artifacts; the registered version names what the current champion needs."""


@dataclass(frozen=True)
class Champion:
    """The model in use: its registered version, and its artifacts by asset."""

    version: Version
    artifacts: dict[str, Artifact]

    @property
    def inputs(self) -> dict[str, str]:
        """Its artifacts as inputs of another artifact."""
        return {f"{CHAMPION_PREFIX}{name}": artifact.fingerprint for name, artifact in self.artifacts.items()}

    @property
    def window(self) -> dict[str, Any]:
        """The events by which it was promoted.

        Raises:
            InputError: it was made champion by hand and never compared.
        """
        if "window" not in self.version.evidence:
            raise InputError(
                f"version {self.version.number} of {self.version.model} became champion without a comparison, so "
                f"there are no figures to compare with; run the job `{promote_job(self.version.track)}` once"
            )
        window: dict[str, Any] = self.version.evidence["window"]
        return window


def open_champion(tracking: MlflowTracking, store: ArtifactStore, track: str, dataset: str) -> Champion:
    """The champion of a track.

    Raises:
        InputError: there is none yet, or one of its artifacts is lost.
    """
    version = tracking.registry(track, dataset).champion()
    if version is None:
        raise InputError(f"{dataset} has no champion yet; run the job `{promote_job(track)}` first")
    return Champion(version, version.open(store, dataset))
