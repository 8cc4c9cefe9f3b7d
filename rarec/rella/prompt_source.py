"""The prompts of samples, with their recent or their retrieved histories, as part numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from rarec.data.ctr import CtrSamples
from rarec.data.sequences import user_at
from rarec.rella.language_model import Answers, ModelReference, find_answers
from rarec.retrieval.subr import distance_type, recent_behaviours, retrieve_behaviours
from rarec.text.prompts import PromptParts
from rarec.text.reader import PromptReader
from rarec.text.tokens import PromptTokens
from rarec.training.job import WorkerJob
from rarec.types import BoolArray, Distances, Float32Array, IntArray

RECENT, RETRIEVED = "recent.npy", "retrieved.npy"


@dataclass(frozen=True)
class RandomHistories:
    """K behaviours drawn at random from each sample's history, the same ones whenever the sample is asked for."""

    samples: CtrSamples
    k: int
    seed: int

    def __getitem__(self, rows: IntArray) -> Distances:
        """(B, K) distances of the behaviours drawn for B samples, largest first, 0 for none."""
        position, offsets = self.samples.position[rows], self.samples.offsets
        before = position - offsets[user_at(offsets, position)]
        out = np.zeros((len(rows), self.k), dtype=distance_type(offsets))
        for number, (sample, length) in enumerate(zip(rows.tolist(), before.tolist(), strict=True)):
            count = min(self.k, length)
            drawn = np.random.default_rng([self.seed, sample]).choice(length, count, replace=False) + 1
            out[number, self.k - count :] = np.sort(drawn)[::-1]
        return out


@dataclass(frozen=True)
class PromptSource:
    """All samples of a data set, and the two histories of each.

    Attributes:
        samples: Targets, labels and splits.
        items: (M,) item of each interaction, sorted by (user, time).
        parts: What prompts are made of.
        recent, retrieved: (N, K) distances of the behaviours of both histories from the target, 0 for none.
    """

    samples: CtrSamples
    items: IntArray
    parts: PromptParts
    recent: Distances
    retrieved: Distances | RandomHistories

    @classmethod
    def load(
        cls,
        *,
        interactions: Path,
        ctr_samples: Path,
        textual_samples: Path,
        retrieval_enhanced_samples: Path,
        histories: Path | None = None,
    ) -> "PromptSource":
        """Read the artifacts of these names. Histories stay on disk until they are needed.

        Args:
            histories: Folder in which `save_histories` wrote both histories, to replace those of the artifacts.
        """
        return cls(
            CtrSamples.load(ctr_samples),
            load_items(interactions),
            PromptParts.load(textual_samples),
            np.load((histories or textual_samples) / RECENT, mmap_mode="r"),
            np.load((histories or retrieval_enhanced_samples) / RETRIEVED, mmap_mode="r"),
        )

    def rows(self, samples: IntArray, retrieved: bool | BoolArray) -> IntArray:
        """(B, K + 3) part numbers of the prompts of B samples, each with its retrieved history or its recent one."""
        position = self.samples.position[samples]
        chosen = np.broadcast_to(retrieved, samples.shape)
        distances = np.empty((len(samples), self.recent.shape[1]), dtype=self.recent.dtype)
        distances[chosen] = self.retrieved[samples[chosen]]
        distances[~chosen] = self.recent[samples[~chosen]]
        return self.parts.of(self.user(samples), self.items[position], position, distances)

    def randomised(self, seed: int) -> "PromptSource":
        """The same, with K behaviours drawn at random in the place of the retrieved ones."""
        return replace(self, retrieved=RandomHistories(self.samples, self.recent.shape[1], seed))

    def user(self, samples: IntArray) -> IntArray:
        """(B,) user of each sample."""
        return user_at(self.samples.offsets, self.samples.position[samples])


class PromptJob(WorkerJob):
    """Base of jobs that prompt a language model; the folders are those of the artifacts of the same name."""

    interactions: Path
    ctr_samples: Path
    textual_samples: Path
    base_language_model: Path
    retrieval_enhanced_samples: Path
    base: str = Field(description="Fingerprint of the language model.")
    cache: Path = Field(description="Where models from a hub are kept.")
    yes: str = Field(description="The answer for a like.")
    no: str = Field(description="The answer for anything else.")


def open_prompts(
    job: PromptJob, histories: Path | None = None
) -> tuple[PromptSource, ModelReference, PromptTokens, Answers]:
    """The samples, the language model, the prompts' tokens for it, and its two answers.

    Args:
        histories: See `PromptSource.load`.

    Raises:
        InputError: The model cannot be loaded, or has no single token for an answer.
    """
    source = PromptSource.load(
        interactions=job.interactions,
        ctr_samples=job.ctr_samples,
        textual_samples=job.textual_samples,
        retrieval_enhanced_samples=job.retrieval_enhanced_samples,
        histories=histories,
    )
    reference = ModelReference.open(job.base_language_model, job.cache)
    reader = PromptReader(reference.tokenizer())
    prompts = PromptTokens.of(source.parts, reader, reference.context_length())
    return source, reference, prompts, find_answers(reader, job.yes, job.no, source.parts.texts[-1])


def save_histories(folder: Path, samples: CtrSamples, items: IntArray, vectors: Float32Array, k: int) -> None:
    """Write both histories of all samples with k behaviours, whatever number the artifacts have.

    Args:
        items: (M,) item of each interaction, sorted by (user, time).
        vectors: (I, D) L2-normalised item vectors.
    """
    save_recent(folder, samples, k)
    save_retrieved(folder, samples, items, vectors, k)


def save_recent(folder: Path, samples: CtrSamples, k: int) -> Distances:
    """Write and return the k latest behaviours before each target; see `recent_behaviours`."""
    return _written(folder / RECENT, samples, k, partial(recent_behaviours, samples.offsets, samples.position, k))


def save_retrieved(folder: Path, samples: CtrSamples, items: IntArray, vectors: Float32Array, k: int) -> Distances:
    """Write and return the k behaviours most similar to each target; see `retrieve_behaviours`."""
    fill = partial(retrieve_behaviours, vectors, items, samples.offsets, samples.position, k)
    return _written(folder / RETRIEVED, samples, k, fill)


def _written(file: Path, samples: CtrSamples, k: int, fill: Callable[[Distances], Distances]) -> Distances:
    out = np.lib.format.open_memmap(file, "w+", distance_type(samples.offsets), (len(samples), k))
    fill(out)
    out.flush()
    return out


def load_items(interactions: Path) -> IntArray:
    """(M,) item of each interaction of the clean table."""
    table = pd.read_parquet(interactions / "interactions.parquet", columns=["item_index"])
    return table["item_index"].to_numpy(np.int64)
