"""Prompts of samples: which parts stand in the prompt of a sample with its recent or its retrieved history."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from rarec.data.ctr import CtrSamples
from rarec.data.sequences import IntArray, user_at
from rarec.rella.language_model import Answers, ModelReference, find_answers
from rarec.retrieval.index import FloatArray
from rarec.retrieval.subr import Distances, distance_type, recent_behaviours, retrieve_behaviours
from rarec.text.prompts import PromptParts
from rarec.text.tokens import PromptTokens

RECENT, RETRIEVED = "recent.npy", "retrieved.npy"


@dataclass(frozen=True)
class PromptSource:
    """All samples of a data set and the two histories of each.

    Attributes:
        samples: targets, labels and splits.
        items: (M,) item of each interaction, sorted by (user, time).
        parts: what prompts are made of.
        recent, retrieved: (N, K) distances of the behaviours kept from the target, 0 for none.
    """

    samples: CtrSamples
    items: IntArray
    parts: PromptParts
    recent: Distances
    retrieved: Distances

    @classmethod
    def load(cls, folders: Mapping[str, str]) -> "PromptSource":
        """From the artifact folders of `interactions`, `ctr_samples`, `textual_samples` and
        `retrieval_enhanced_samples`; the histories stay on disk until they are asked for. With a folder
        ``histories``, both are those of `save_histories` there.
        """
        text = Path(folders["textual_samples"])
        own = folders.get("histories")
        return cls(
            CtrSamples.load(Path(folders["ctr_samples"])),
            load_items(Path(folders["interactions"])),
            PromptParts.load(text),
            np.load(Path(own or text) / RECENT, mmap_mode="r"),
            np.load(Path(own or folders["retrieval_enhanced_samples"]) / RETRIEVED, mmap_mode="r"),
        )

    def rows(self, samples: IntArray, retrieved: bool | npt.NDArray[np.bool_]) -> IntArray:
        """(B, K + 3) part numbers of the prompts of B samples, each with its retrieved history or its recent one."""
        position = self.samples.position[samples]
        chosen = np.broadcast_to(retrieved, samples.shape)
        distances = np.empty((len(samples), self.recent.shape[1]), dtype=self.recent.dtype)
        distances[chosen] = self.retrieved[samples[chosen]]
        distances[~chosen] = self.recent[samples[~chosen]]
        return self.parts.of(self.user(samples), self.items[position], position, distances)

    def user(self, samples: IntArray) -> IntArray:
        """(B,) user of each sample."""
        return user_at(self.samples.offsets, self.samples.position[samples])


def open_prompts(job: Mapping[str, str]) -> tuple[PromptSource, ModelReference, PromptTokens, Answers]:
    """What asks a language model: the samples, the model, the prompts' tokens for it, and its answers.

    Args:
        job: the artifact folders that `PromptSource` reads and that of `base_language_model`, the hub's ``cache``, and
            the two answers ``yes`` and ``no``.

    Raises:
        InputError: the model cannot be had, or has no single token for an answer.
    """
    source = PromptSource.load(job)
    reference = ModelReference.open(Path(job["base_language_model"]), Path(job["cache"]))
    tokenizer = reference.tokenizer()
    prompts = PromptTokens.of(source.parts, tokenizer, reference.context_length())
    return source, reference, prompts, find_answers(tokenizer, job["yes"], job["no"])


def save_histories(folder: Path, samples: CtrSamples, items: IntArray, vectors: FloatArray, k: int) -> None:
    """Write both histories of every sample with k behaviours, whatever the artifacts' number is.

    Args:
        items: (M,) item of each interaction, sorted by (user, time).
        vectors: (I, D) L2-normalised item vectors.
    """
    save_recent(folder, samples, k)
    save_retrieved(folder, samples, items, vectors, k)


def save_recent(folder: Path, samples: CtrSamples, k: int) -> Distances:
    """Write and return the k latest behaviours before every sample's target; see `recent_behaviours`."""
    return _written(folder / RECENT, samples, k, partial(recent_behaviours, samples.offsets, samples.position, k))


def save_retrieved(folder: Path, samples: CtrSamples, items: IntArray, vectors: FloatArray, k: int) -> Distances:
    """Write and return the k most similar ones; see `retrieve_behaviours`."""
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
