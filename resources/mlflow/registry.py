"""Which trained model is in use: versions registered in MLflow, the alias `champion`, and the evidence for it."""

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
        artifacts: asset to fingerprint: what it is made of in the artifact store.
        kind: trained as a whole, or another version with a refreshed memory, or with stage 2 trained anew on that.
        evidence: how it compared with the champion of then.
        replaced: number of the champion it took the place of.
        rolled_back: when it was taken back as champion (ISO 8601); empty if it was not, or was promoted again since.
        rolled_back_to: number of the version in favour of which.
        registered: when (Unix time).
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
        """For `mlflow.pyfunc.load_model`."""
        return f"models:/{self.model}/{self.number}"

    @property
    def track(self) -> str:
        """Of its model."""
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
            except DamagedArtifact:  # as good as lost: of an old model nobody makes it again
                artifact = None
            if artifact is None:
                missing.append(f"{asset}/{partition}/{identity}")
            else:
                found[asset] = artifact
        if missing:
            raise InputError(
                f"version {self.number} of {self.model} has lost {', '.join(missing)} from the artifact store. Restore "
                f"it from a backup, or run the job `rollback` for {partition} (its setting track: "
                f"{self.track}) to use the champion before it, or with version: any other; where there is none, let a "
                "candidate take its place (its setting replace_lost)"
            )
        return found


class ModelRegistry:
    """The versions of one data set's model of one track."""

    def __init__(self, client: "MlflowClient", track: str, dataset: str) -> None:
        self._client = client
        self._dataset = dataset
        self._track = track
        self.name = f"rarec-{dataset}-{track}"

    def versions(self) -> list[Version]:
        """All of them, oldest first."""
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
        """A version of the logged model; the present one where these artifacts are registered already."""
        import mlflow

        for version in self.versions():
            if version.artifacts == dict(artifacts):
                return version
        tags = {_ARTIFACTS: json.dumps(dict(artifacts), sort_keys=True), _KIND: kind}
        made = mlflow.register_model(model_uri, self.name, tags=tags)
        return self._get(int(made.version))

    def record(self, version: Version, evidence: Mapping[str, Any]) -> None:
        """Put the evidence into the version's tags."""
        self._tag(version, _EVIDENCE, json.dumps(dict(evidence), sort_keys=True))

    def promote(self, version: Version) -> Version:
        """Make it the champion."""
        before = self.champion()
        if before is None or before.number != version.number:
            if before is not None:
                self._tag(version, _REPLACED, str(before.number))
            self._unmark(version)
            # Last, so that a champion always tells whom it replaced.
            self._client.set_registered_model_alias(self.name, CHAMPION, str(version.number))
        return self._get(version.number)

    def roll_back(self, store: ArtifactStore, number: int | None = None) -> tuple[Version, Version]:
        """Take the champion back: the alias goes to the one it replaced, or to version ``number``.

        A version once rolled back is passed over, so that repeated calls go ever further back. One that is named is
        no longer held for rolled back; and where it had given way to the present champion, neither is that.

        Returns:
            The champion before and now.

        Raises:
            InputError: there is no champion, no such version, none before, or what it is made of is lost. Nothing was
                changed then.
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
                f"{self.name} has no version {wanted}; the champion is version {before.number} and serves on. "
                + (f"Set `version` to one of {others}" if others else "There is no other")
            )
        known[number].open(store, self._dataset)
        if not _gave_way(known, number, before.number):
            self._tag(before, _ROLLED_BACK_TO, str(number))
            self._tag(before, _ROLLED_BACK, datetime.now(UTC).isoformat(timespec="seconds"))
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
    """To which versions rollbacks go, one after the other: each replaced the next one; what was rolled back already
    is passed over.
    """
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
    """Whether the version was rolled back in favour of version ``to``, at once or step by step."""
    passed: list[Version] = []
    version = known.get(number)
    while version is not None and version.rolled_back_to is not None and version not in passed:
        if version.rolled_back_to == to:
            return True
        passed.append(version)
        version = known.get(version.rolled_back_to)
    return False
