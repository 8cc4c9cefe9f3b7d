"""Click models of other libraries on our samples: what they are given. See `rarec.baselines.peers`."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator

from rarec.config import Settings, require_distinct
from rarec.data.ctr import CtrSamples
from rarec.retrieval.subr import recent_behaviours
from rarec.types import BoolArray, Distances, Int32Array, IntArray

SAMPLES, PROBABILITY = "samples.npz", "probability.npy"
CtrPeer = Literal["dcnv2", "din"]
CTR_PEERS: dict[CtrPeer, str] = {"dcnv2": "torch-rechub DCNv2", "din": "torch-rechub DIN"}
USER_FIELDS = ("gender", "age_group", "age", "occupation", "location", "zip_code")
ITEM_FIELDS = ("genres", "category", "author", "publisher", "year")


class PeerPredictionSettings(Settings):
    """torch-rechub's models, and the values between which validation AUC chooses."""

    models: tuple[CtrPeer, ...] = Field(default=("dcnv2", "din"), description="Models to train.")
    dim: int = Field(default=16, ge=2, description="Width of the embeddings.")
    behaviours: int = Field(default=30, ge=1, description="Latest behaviours that a model reads.")
    learning_rates: tuple[float, ...] = Field(default=(1e-3, 3e-3), description="Adam's learning rates to try.")
    weight_decays: tuple[float, ...] = Field(default=(1e-5, 1e-4), description="Weight decays to try.")
    batch_size: int = Field(default=512, ge=2, description="Samples per step.")
    epochs: int = Field(default=20, ge=1, description="Most epochs to train.")
    patience: int = Field(default=2, ge=1, description="Epochs without a better validation AUC after which it stops.")
    seed: int = Field(default=42, ge=0, description="Seed of weights, data order and dropout.")

    @model_validator(mode="after")
    def _consistent(self) -> "PeerPredictionSettings":
        for name in ("models", "learning_rates", "weight_decays"):
            require_distinct(name, getattr(self, name))
        return self

    def job(self, model: CtrPeer, rows: str, exchange: Path, output: Path) -> dict[str, Any]:
        """What `benchmarks/peers/predictions.py` reads. ``rows`` are all training samples, or the shots."""
        own = self.model_dump(exclude={"models", "behaviours"})
        return {"model": model, "rows": rows, "exchange": str(exchange), "output": str(output), **own}


def save_samples(
    samples: CtrSamples,
    items: IntArray,
    liked: npt.ArrayLike,
    catalogue: pd.DataFrame,
    users: pd.DataFrame,
    shots: IntArray,
    behaviours: int,
    folder: Path,
) -> None:
    """Write what peers read: codes of every field of a sample, its latest behaviours, and those that were liked.

    Code 0 is a missing value, and no behaviour.

    Args:
        items, liked: (M,) of each interaction, sorted by (user, time).
        catalogue, users: The clean tables.
        shots: Training samples that the adapters are tuned on.
    """
    fields, sizes = sample_fields(samples, items, catalogue, users)
    ages = recent_behaviours(samples.offsets, samples.position, behaviours)
    history, likes = behaviours_at(samples, items, liked, ages)
    np.savez(
        folder / SAMPLES,
        names=np.array(list(fields)),
        sizes=np.array(sizes),
        fields=np.column_stack(list(fields.values())).astype(np.int32),
        history=history,
        liked=np.where(likes, history, 0).astype(np.int32),
        label=samples.label,
        splits=samples.bounds,
        shots=shots,
    )


def behaviours_at(
    samples: CtrSamples, items: IntArray, liked: npt.ArrayLike, ages: Distances
) -> tuple[Int32Array, BoolArray]:
    """(N, K) codes of the behaviours that lie ``ages`` (N, K) before each target, 0 for none, and which were liked."""
    place = samples.position[:, None] - ages.astype(np.int64)
    there = ages > 0
    return np.where(there, items[place] + 1, 0).astype(np.int32), np.asarray(liked, dtype=bool)[place] & there


def sample_fields(
    samples: CtrSamples, items: IntArray, catalogue: pd.DataFrame, users: pd.DataFrame
) -> tuple[dict[str, IntArray], list[int]]:
    """Code of each field of the samples, the target item second; and how many codes there are."""
    target = items[samples.position]
    user = np.asarray(samples.user)
    fields = {"user": user, "item": target + 1}
    fields |= {f"user {name}": _codes(users[name])[user] for name in USER_FIELDS if users[name].notna().any()}
    fields |= {f"item {name}": _codes(catalogue[name])[target] for name in ITEM_FIELDS if catalogue[name].notna().any()}
    sizes = [len(users), len(catalogue) + 1, *(int(codes.max()) + 1 for codes in list(fields.values())[2:])]
    return fields, sizes


def _codes(values: pd.Series) -> IntArray:
    """(n,) number of each value from 1, 0 if it is missing."""
    return pd.factorize(values)[0].astype(np.int64) + 1
