"""The champion as its artifacts hold it; for assets that use or measure it."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np

from rarec.champions.raserec import ServedRecommender
from rarec.errors import InputError
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import PROMOTE, Track, Version
from resources.mlflow.tracking import MlflowTracking

MADE_OF = (
    "raserec_pretrained", "memory_bank", "raserec_finetuned", "item_catalog", "user_profiles", "user_sequences",
)  # fmt: skip
REFRESHED, REFITTED = "refreshed_memory", "refreshed_finetuned"


def served(made_of: Mapping[str, Artifact]) -> ServedRecommender:
    """The model that these artifacts hold."""
    bank = made_of.get(REFRESHED) or made_of["memory_bank"]
    own = REFRESHED in made_of  # its memories stand in sequences of its own
    return ServedRecommender.load(
        made_of["raserec_pretrained"].path,
        bank.path,
        module_of(made_of).path,
        made_of["item_catalog"].path,
        bank.path if own else made_of["user_profiles"].path,
        bank.path if own else made_of["user_sequences"].path,
        made_of["raserec_pretrained"].fingerprint,
    )


def module_of(made_of: Mapping[str, Artifact]) -> Artifact:
    """The retrieval-augmented module."""
    return made_of.get(REFITTED) or made_of["raserec_finetuned"]


def unseen_since(made_of: Mapping[str, Artifact]) -> int:
    """The time (seconds) from which on nothing was used to train this model."""
    if REFITTED in made_of:
        return int(made_of[REFITTED].metadata["values"]["unseen_since"])
    sequences = made_of["user_sequences"]
    until: int | None = sequences.metadata["values"].get("until")
    return until if until is not None else int(np.load(sequences.file("timestamps.npy")).max()) + 1


CHAMPIONS = "champion's "
"""So begin inputs that tell which champion an artifact was made of. Nothing reads them again, so `clean` does not keep
them for that; what the champion of today needs stands in its version's artifacts."""


def as_inputs(made_of: Mapping[str, Artifact]) -> dict[str, str]:
    """The champion's artifacts as what another one is made from."""
    return {f"{CHAMPIONS}{name}": artifact.fingerprint for name, artifact in made_of.items()}


def promotion_window(champion: Version) -> dict[str, Any]:
    """The events by which the champion was promoted.

    Raises:
        InputError: it was made champion by hand and never compared.
    """
    if "window" not in champion.evidence:
        raise InputError(
            f"version {champion.number} of {champion.model} became champion without a comparison, so there is nothing "
            f"to set its figures beside; run the job `{PROMOTE[champion.track]}` once"
        )
    window: dict[str, Any] = champion.evidence["window"]
    return window


def open_champion(
    context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MlflowTracking, track: Track = "raserec"
) -> tuple[Version, dict[str, Artifact]]:
    """The track's champion and its artifacts.

    Raises:
        InputError: there is none yet, or an artifact of it is gone.
    """
    champion = tracking.registry(track, context.partition_key).champion()
    if champion is None:
        raise InputError(f"{context.partition_key} has no champion yet; run the job `{PROMOTE[track]}` first")
    return champion, champion.open(store, context.partition_key)
