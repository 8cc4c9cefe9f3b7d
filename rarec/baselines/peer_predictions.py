"""Click models of other libraries on our samples: what they are given. See `rarec.baselines.peers`."""

from dataclasses import dataclass
from functools import cached_property
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

    def job(self, model: CtrPeer, rows: str) -> dict[str, Any]:
        """What `benchmarks/peers/predictions.py` reads, but for its places; ``rows``: all samples, or the shots."""
        return {"model": model, "rows": rows, **self.model_dump(exclude={"models", "behaviours"})}


@dataclass(frozen=True)
class ClickData:
    """What click models read.

    Attributes:
        samples: The samples.
        items, rating, liked: (M,) of each interaction, sorted by (user, time).
        catalogue, users: The clean tables.
        shots: Training samples that the adapters are tuned on.
    """

    samples: CtrSamples
    items: IntArray
    rating: npt.NDArray[Any]
    liked: BoolArray
    catalogue: pd.DataFrame
    users: pd.DataFrame
    shots: IntArray

    @cached_property
    def rating_codes(self) -> IntArray:
        """(M,) number of each rating among the different ones, from 1."""
        return np.unique(self.rating, return_inverse=True)[1].astype(np.int64) + 1


def save_samples(data: ClickData, behaviours: int, folder: Path) -> None:
    """Write what peers read: codes of every field of a sample, of its latest behaviours and of their ratings.

    Code 0 is a missing value, and no behaviour. ``liked`` holds the items that were liked.
    """
    samples = data.samples
    fields, sizes = sample_fields(data)
    ages = recent_behaviours(samples.offsets, samples.position, behaviours)
    history, rating = behaviours_at(data, ages)
    likes = data.liked[samples.position[:, None] - ages.astype(np.int64)]
    np.savez(
        folder / SAMPLES,
        names=np.array(list(fields)),
        sizes=np.array(sizes),
        fields=np.column_stack(list(fields.values())).astype(np.int32),
        history=history,
        liked=np.where(likes, history, 0).astype(np.int32),
        rating=rating,
        ratings=data.rating_codes.max() + 1,
        label=samples.label,
        splits=samples.bounds,
        shots=data.shots,
    )


def behaviours_at(data: ClickData, ages: Distances) -> tuple[Int32Array, Int32Array]:
    """(N, K) codes of the behaviours that lie ``ages`` (N, K) before each target, and of their ratings; 0 for none."""
    place = data.samples.position[:, None] - ages.astype(np.int64)
    there = ages > 0
    codes = (np.where(there, own[place], 0).astype(np.int32) for own in (data.items + 1, data.rating_codes))
    item, rating = codes
    return item, rating


def sample_fields(data: ClickData) -> tuple[dict[str, IntArray], list[int]]:
    """Code of each field of the samples, the target item second; and how many codes there are."""
    samples, catalogue, users = data.samples, data.catalogue, data.users
    target = data.items[samples.position]
    user = np.asarray(samples.user)
    fields = {"user": user, "item": target + 1}
    fields |= {f"user {name}": _codes(users[name])[user] for name in USER_FIELDS if users[name].notna().any()}
    fields |= {f"item {name}": _codes(catalogue[name])[target] for name in ITEM_FIELDS if catalogue[name].notna().any()}
    sizes = [len(users), len(catalogue) + 1, *(int(codes.max()) + 1 for codes in list(fields.values())[2:])]
    return fields, sizes


def _codes(values: pd.Series) -> IntArray:
    """(n,) number of each value from 1, 0 if it is missing."""
    return pd.factorize(values)[0].astype(np.int64) + 1
