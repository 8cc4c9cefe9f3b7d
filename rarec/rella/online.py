"""A tuned model for single questions: will this user, with this history, like this item?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rarec.data.ids import IdLookup
from rarec.data.sequences import user_at
from rarec.data.templates import Template
from rarec.errors import InputError
from rarec.rella.language_model import ModelReference, find_answers
from rarec.rella.scoring import score
from rarec.rella.tuning import load_adapter
from rarec.rella.vectors import VECTORS
from rarec.retrieval.subr import retrieve_behaviours
from rarec.text.prompts import build_parts
from rarec.text.reader import PromptReader
from rarec.text.tokens import PromptTokens
from rarec.training.engine import worker_device
from rarec.training.progress import ReportProgress, quiet
from rarec.types import Float32Array, Float64Array, IntArray

BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class OnlineModel:
    """A language model with its adapter, and everything that its prompts are made of.

    Attributes:
        model, tokenizer: From transformers, with the adapter.
        items, users: The clean tables.
        vectors: (I, D) semantic item vectors.
        template: Wording of prompts.
        behaviours: K, behaviours of a retrieved history.
        limit: Most tokens of a prompt.
    """

    model: Any
    tokenizer: Any
    items: pd.DataFrame
    users: pd.DataFrame
    vectors: Float32Array
    template: Template
    behaviours: int
    limit: int

    @classmethod
    def load(
        cls, folders: Mapping[str, Path], base: str, template: Template, behaviours: int, cache: Path | None = None
    ) -> "OnlineModel":
        """Load a model from artifact folders.

        Args:
            folders: Those of `base_language_model`, `item_catalog`, `user_profiles`, `semantic_item_vectors`, and of
                the ``adapter``.
            base: Fingerprint of the language model.
            cache: Where models from a hub are kept; by default the folder of the hub's own client.

        Raises:
            InputError: The adapter was tuned on another language model than ``base``.
        """
        reference = ModelReference.open(folders["base_language_model"], cache)
        return cls(
            load_adapter(reference.model(worker_device()), folders["adapter"], base),
            reference.tokenizer(),
            pd.read_parquet(folders["item_catalog"] / "items.parquet"),
            pd.read_parquet(folders["user_profiles"] / "users.parquet"),
            np.load(folders["semantic_item_vectors"] / VECTORS),
            template,
            behaviours,
            reference.context_length(),
        )

    # Kept: a catalogue may hold many more items than a request.
    @cached_property
    def item_rows(self) -> IdLookup:
        """The catalogue's ids."""
        return IdLookup(self.items["item_id"])

    @cached_property
    def reader(self) -> PromptReader:
        """How the tokenizer reads prompts."""
        return PromptReader(self.tokenizer)

    @cached_property
    def user_rows(self) -> IdLookup:
        """The ids of users with a profile."""
        return IdLookup(self.users["user_id"])

    def predict(
        self,
        users: Sequence[object],
        histories: Sequence[Sequence[object]],
        ratings: Sequence[Sequence[float]],
        targets: Sequence[object],
    ) -> Float64Array:
        """(B,) probabilities that users like their targets.

        Raises:
            InputError: A target is unknown, or the numbers of ratings and behaviours differ.
        """
        wanted = self.item_rows.rows(targets)
        if (wanted < 0).any():
            raise InputError(f"the target {targets[int(np.argmin(wanted))]!r} is not in the catalogue")
        items: list[int] = []
        given: list[float] = []
        ends = []
        for row, (history, own) in enumerate(zip(histories, ratings, strict=True)):
            if len(history) != len(own):
                raise InputError(f"row {row} has {len(history)} items in its history, but {len(own)} ratings")
            places = self.item_rows.rows(history)
            items += [*places[places >= 0].tolist(), int(wanted[row])]
            given += [*(float(r) for place, r in zip(places, own, strict=True) if place >= 0), float("nan")]
            ends.append(len(items) - 1)
        position = np.array(ends, dtype=np.int64)
        offsets = np.concatenate([[0], position + 1])
        return self.ask(self.user_rows.rows(users), np.array(items, dtype=np.int64), given, offsets, position)

    def ask(
        self,
        users: IntArray,
        items: IntArray,
        ratings: npt.ArrayLike,
        offsets: IntArray,
        position: IntArray,
        batch_tokens: int = BATCH_TOKENS,
        report: ReportProgress = quiet,
    ) -> Float64Array:
        """(B,) probabilities that interactions are likes, each given what the same user did before.

        Args:
            users: (U,) rows in the table of users, -1 for unknown users.
            items, ratings: (M,) row in the catalogue and rating of each interaction, sorted by (user, time).
            offsets: (U + 1,) where each user's interactions begin.
            position: (B,) the interactions to predict.
        """
        # Parts are made only of the items in question: a catalogue may hold many more.
        used, item_index = np.unique(items, return_inverse=True)
        people = self.users.reindex(users).reset_index(drop=True)
        parts = build_parts(self.template, self.items.iloc[used], people, item_index, ratings)
        distances = retrieve_behaviours(self.vectors[used], item_index, offsets, position, self.behaviours)
        rows = parts.of(user_at(offsets, position), item_index[position], position, distances)
        tokens = PromptTokens.of(parts, self.reader, self.limit)
        answers = find_answers(self.reader, self.template.yes, self.template.no, parts.texts[-1])
        return score(self.model, tokens, rows, answers, worker_device(), batch_tokens, report)[0]
