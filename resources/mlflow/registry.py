"""The model in use: versions registered in MLflow, the alias `champion`, and the evidence for it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from rarec.champions.promotion import Kind
from rarec.errors import InputError
from resources.artifacts.manifest import DamagedArtifact
from resources.artifacts.store import Artifact, ArtifactStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREFIX = "rarec-"  # of registered models: rarec-<data set>-<track>

_ARTIFACTS = "rarec.artifacts"
_KIND = "rarec.kind"
_EVIDENCE = "rarec.evidence"
_REPLACED = "rarec.replaced"
_ROLLED_BACK = "rarec.rolled_back"
_ROLLED_BACK_TO = "rarec.rolled_back_to"


def promote_job(track: str) -> str:
    """Name of the job that promotes a track's candidate."""
    return "promote" if track == "raserec" else f"promote_{track}"


@dataclass(frozen=True)
class Version:
    """A registered version of a model.

    Attributes:
        model: its registered name.
        number: counted from 1.
        artifacts: asset -> fingerprint, of everything it consists of in the artifact store.
        kind: trained from scratch, or another version with a refreshed memory, or with stage 2 retrained on that.
        evidence: how it compared with the champion at the time.
        replaced: number of the champion that it replaced.
        rolled_back: when it was rolled back (ISO 8601); empty if never, or if it was promoted again since.
        rolled_back_to: number of the version that it was rolled back to.
        registered: when it was registered (Unix time).
    """

    model: str
    number: int
    artifacts: dict[str, str]
    kind: Kind
    evidence: dict[str, Any] = field(default_factory=dict)
    replaced: int | None = None
    rolled_back: str = ""
    rolled_back_to: int | None = None
    registered: float = 0.0

    @property
    def uri(self) -> str:
        """URI for `mlflow.pyfunc.load_model`."""
        return f"models:/{self.model}/{self.number}"

    @property
    def track(self) -> str:
        """The track of its model."""
        return self.model.rsplit("-", 1)[1]

    def open(self, store: ArtifactStore, partition: str) -> dict[str, Artifact]:
        """Its artifacts by asset.

        Raises:
            InputError: one is no longer in the store.
        """
        found, missing = {}, []
        for asset, identity in self.artifacts.items():
            try:
                artifact = store.find(asset, partition, identity)
            except DamagedArtifact:  # as good as lost: nobody rebuilds an artifact of an old model
                artifact = None
            if artifact is None:
                missing.append(f"{asset}/{partition}/{identity}")
            else:
                found[asset] = artifact
        if missing:
            raise InputError(
                f"version {self.number} of {self.model} has lost {', '.join(missing)} from the artifact store. Restore "
                f"it from a backup, or run the job `rollback` for {partition} with track: {self.track} (version: picks "
                "a version other than the previous champion). If there is none, set replace_lost on the candidate so "
                "that it replaces this version"
            )
        return found


class ModelRegistry:
    """The versions of one data set's model of one track."""

    def __init__(self, client: "MlflowClient", track: str, dataset: str) -> None:
        self._client = client
        self.dataset = dataset
        self._track = track
        self.name = f"{PREFIX}{dataset}-{track}"

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        found = self._client.search_model_versions(f"name='{self.name}'", max_results=10_000)
        return sorted((_version(one) for one in found), key=lambda version: version.number)

    def champion(self) -> Version | None:
        """The version in use; None before the first promotion."""
        from mlflow.exceptions import MlflowException

        try:
            return _version(self._client.get_model_version_by_alias(self.name, CHAMPION))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no alias
                return None
            raise

    def register(self, model_uri: str, artifacts: Mapping[str, str], kind: Kind) -> Version:
        """Register the logged model; if these artifacts are registered already, return that version."""
        import mlflow

        for version in self.versions():
            if version.artifacts == dict(artifacts):
                return version
        tags = {_ARTIFACTS: json.dumps(dict(artifacts), sort_keys=True), _KIND: kind}
        made = mlflow.register_model(model_uri, self.name, tags=tags)
        return self._get(int(made.version))

    def record(self, version: Version, evidence: Mapping[str, Any]) -> None:
        """Store the evidence in the version's tags."""
        self._tag(version, _EVIDENCE, json.dumps(dict(evidence), sort_keys=True))

    def promote(self, version: Version) -> Version:
        """Make it the champion."""
        before = self.champion()
        if before is None or before.number != version.number:
            if before is not None:
                self._tag(version, _REPLACED, str(before.number))
            self._unmark(version)
            # Last, so that a champion always records which one it replaced.
            self._client.set_registered_model_alias(self.name, CHAMPION, str(version.number))
        return self._get(version.number)

    def roll_back(self, store: ArtifactStore, number: int | None = None) -> tuple[Version, Version]:
        """Move the alias `champion` to the version that the champion replaced, or to version ``number``.

        Versions that were rolled back before are skipped, so that repeated calls go further and further back. Going to
        a version by its number clears its own mark; if that version had been rolled back to the present champion, the
        present champion gets no mark, either.

        Returns:
            The champion before and after.

        Raises:
            InputError: there is no champion or no such version, or its artifacts are lost. Nothing has changed then.
        """
        known = {version.number: version for version in self.versions()}
        before = self.champion()
        if before is None:
            raise InputError(f"{self.name} has no champion; run the job `{promote_job(self._track)}` first")
        if number is None:
            number = next((version.number for version in rollback_chain(known.values(), before)), None)
        if number is None or number not in known or number == before.number:
            wanted = "before the champion" if number is None or number == before.number else f"with number {number}"
            others = ", ".join(str(one) for one in known if one != before.number)
            raise InputError(
                f"{self.name} has no version {wanted}; version {before.number} remains the champion. "
                + (f"Set `version` to one of {others}" if others else "There is no other version")
            )
        known[number].open(store, self.dataset)
        if not _gave_way(known, number, before.number):
            self._tag(before, _ROLLED_BACK_TO, str(number))
            self._tag(before, _ROLLED_BACK, datetime.now(UTC).isoformat(timespec="milliseconds"))
        self._unmark(known[number])
        self._client.set_registered_model_alias(self.name, CHAMPION, str(number))
        return before, self._get(number)

    def _get(self, number: int) -> Version:
        return _version(self._client.get_model_version(self.name, str(number)))

    def _unmark(self, version: Version) -> None:
        if version.rolled_back:
            self._client.delete_model_version_tag(self.name, str(version.number), _ROLLED_BACK)

    def _tag(self, version: Version, key: str, value: str) -> None:
        self._client.set_model_version_tag(self.name, str(version.number), key, value)


def _version(found: "ModelVersion") -> Version:
    tags = found.tags
    return Version(
        model=found.name,
        number=int(found.version),
        artifacts=json.loads(tags.get(_ARTIFACTS, "{}")),
        kind=cast(Kind, tags.get(_KIND, "trained")),
        evidence=json.loads(tags.get(_EVIDENCE, "{}")),
        replaced=int(tags[_REPLACED]) if _REPLACED in tags else None,
        rolled_back=tags.get(_ROLLED_BACK, ""),
        rolled_back_to=int(tags[_ROLLED_BACK_TO]) if _ROLLED_BACK_TO in tags and _ROLLED_BACK in tags else None,
        registered=found.creation_timestamp / 1000,
    )


def rollback_chain(versions: Iterable[Version], champion: Version) -> list[Version]:
    """The versions that repeated rollbacks go to, in order. Versions that were rolled back before are skipped."""
    known = {version.number: version for version in versions}
    chain, passed = [], {champion.number}
    number = champion.replaced
    while number in known and number not in passed:
        passed.add(number)
        if not known[number].rolled_back:
            chain.append(known[number])
        number = known[number].replaced
    return chain


def _gave_way(known: Mapping[int, Version], number: int, to: int) -> bool:
    """Whether the version was rolled back to version ``to``, directly or step by step."""
    passed: list[Version] = []
    version = known.get(number)
    while version is not None and version.rolled_back_to is not None and version not in passed:
        if version.rolled_back_to == to:
            return True
        passed.append(version)
        version = known.get(version.rolled_back_to)
    return False
