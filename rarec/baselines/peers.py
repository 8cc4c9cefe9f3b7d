"""Models of other libraries on our splits: what they are given, and what they give back.

They run in an environment of their own (`benchmarks/peers`), since RecTools needs an older pandas. What is exchanged is
arrays: sequences one way, lists of best items the other.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from rarec.config import Settings, require_distinct
from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.metrics.ranking import RankingResult
from rarec.types import IntArray, Protocol, Split

SEQUENCES, LISTS, TRAINING = "sequences.npz", "lists.npz", "training.json"
PLACES: tuple[tuple[Split, Protocol], ...] = (
    ("valid", "unmasked"), ("valid", "masked"), ("test", "unmasked"), ("test", "masked"),
)  # fmt: skip
PeerModel = Literal["sasrec", "esasrec", "bert4rec"]
PEERS: dict[PeerModel, str] = {
    "sasrec": "RecTools SASRec",
    "esasrec": "RecTools eSASRec",
    "bert4rec": "RecTools BERT4Rec",
}


class PeerRankingSettings(Settings):
    """RecTools' models. Defaults are those of the eSASRec authors for Amazon Beauty, with sampled softmax."""

    models: tuple[PeerModel, ...] = Field(default=("sasrec", "esasrec", "bert4rec"), description="Models to train.")
    factors: int = Field(default=256, ge=4, multiple_of=4, description="Width of item embeddings.")
    blocks: int = Field(default=1, ge=1, description="Transformer blocks of SASRec and eSASRec; BERT4Rec has two.")
    heads: int = Field(
        default=1, ge=1, description="Attention heads of SASRec and eSASRec, a divisor of factors; BERT4Rec has four."
    )
    dropouts: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        default=(0.2,), description="Dropouts to try; validation NDCG@10 chooses."
    )
    max_length: int = Field(default=50, ge=2, description="Latest items of a history that a model reads.")
    negatives: int = Field(default=256, ge=1, description="Items drawn for each sampled softmax.")
    batch_size: int = Field(default=128, ge=1, description="Users per step.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's learning rate.")
    epochs: int = Field(default=200, ge=1, description="Most epochs to train.")
    patience: int = Field(
        default=20, ge=1, description="Epochs without a better validation NDCG@10 after which training stops."
    )
    seed: int = Field(default=42, ge=0, description="Seed of weights, data order, negatives and dropout.")

    @model_validator(mode="after")
    def _consistent(self) -> "PeerRankingSettings":
        for name in ("models", "dropouts"):
            require_distinct(name, getattr(self, name))
        if self.factors % self.heads:
            raise ValueError(f"factors = {self.factors} is not a multiple of heads = {self.heads}")
        return self

    def job(self, model: PeerModel, dropout: float) -> dict[str, Any]:
        """What `benchmarks/peers/rankings.py` reads, but for its places."""
        shape = {"n_blocks": self.blocks, "n_heads": self.heads} if model != "bert4rec" else {}  # RecTools' own
        return {
            "model": model,
            "seed": self.seed,
            "epochs": self.epochs,
            "patience": self.patience,
            "settings": {
                **shape,
                "n_factors": self.factors,
                "dropout_rate": dropout,
                "session_max_len": self.max_length,
                "n_negatives": self.negatives,
                "batch_size": self.batch_size,
                "lr": self.learning_rate,
                "loss": "sampled_softmax",
            },
        }


def save_sequences(sequences: UserSequences, folder: Path) -> None:
    """Write what peers read: everyone's items, where the training part ends, and the users who are evaluated."""
    np.savez(
        folder / SEQUENCES,
        offsets=sequences.offsets,
        items=sequences.items,
        train_ends=sequences.train_ends,
        users=sequences.evaluated_users(),
    )


@dataclass(frozen=True)
class PeerLists:
    """What a peer gave back.

    Attributes:
        lists: split and protocol to (Q, N) best items of the evaluated users, -1 if there are fewer.
        training: Validation figures and seconds by epoch, the epoch kept, seconds in all, peak memory in MiB.
    """

    lists: dict[tuple[Split, Protocol], IntArray]
    training: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "PeerLists":
        """Read what `benchmarks/peers/rankings.py` wrote.

        Raises:
            InputError: It wrote something else.
        """
        with np.load(folder / LISTS) as arrays:
            names = set(arrays.files)
            if names != {f"{split}_{protocol}" for split, protocol in PLACES}:
                raise InputError(f"{folder / LISTS} holds {', '.join(sorted(names))}, not the lists of both splits")
            lists = {(split, protocol): arrays[f"{split}_{protocol}"] for split, protocol in PLACES}
        return cls(lists, json.loads((folder / TRAINING).read_text()))

    def ranking(self, split: Split, sequences: UserSequences) -> RankingResult:
        """Ranks of the split's targets in the lists. A target that is in no list is last.

        A target that the user has seen before stays a candidate, as for our models: without the items seen before it,
        its place in the masked list is the one that it has among the others of the list of all items.
        """
        prefixes = sequences.prefixes(split)
        targets = sequences.next_items(prefixes)
        unmasked, masked = self.lists[split, "unmasked"], self.lists[split, "masked"]
        rank, rank_masked = (_ranks(best, targets, sequences.n_items) for best in (unmasked, masked))
        offsets, seen = sequences.seen_before(prefixes)
        for row, target in enumerate(targets):
            own = seen[offsets[row] : offsets[row + 1]]
            if target in own and rank[row] < sequences.n_items:
                rank_masked[row] = rank[row] - np.isin(unmasked[row, : rank[row] - 1], own).sum()
        return RankingResult(torch.from_numpy(rank), torch.from_numpy(rank_masked))


def _ranks(best: IntArray, targets: IntArray, n_items: int) -> IntArray:
    """(Q,) place of each target in its list, from 1; ``n_items`` if it is not there."""
    found = best == targets[:, None]
    return np.where(found.any(1), found.argmax(1) + 1, n_items)
