"""The item index: similar items by their semantic vectors, in Faiss (ReLLa, section 3.2).

Its ids are the catalogue's item indices (`item_index`). Faiss gets them explicitly, so nothing depends on the order in
which vectors are added.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from rarec.retrieval.index import new_index
from rarec.retrieval.settings import IndexSettings
from rarec.types import Float32Array, IntArray

_INDEX, _SETTINGS = "index.faiss", "index.json"


@dataclass(frozen=True)
class ItemIndex:
    """A Faiss index over L2-normalised item vectors whose ids are item indices."""

    index: Any
    settings: IndexSettings

    @classmethod
    def build(cls, vectors: Float32Array, items: IntArray, settings: IndexSettings) -> Self:
        """Build an index of (I, D) L2-normalised vectors and their item indices (I,).

        Raises:
            InputError: There are more inverted lists than items.
        """
        index = faiss.IndexIDMap2(new_index(vectors, settings, "items"))
        index.add_with_ids(vectors, np.asarray(items, dtype=np.int64))
        return cls(index, settings)

    def similar(self, vectors: Float32Array, k: int) -> tuple[IntArray, Float32Array]:
        """(Q, k) items most similar to each query vector, and their cosines; -1 and -inf if the index finds fewer."""
        scores, items = self.index.search(np.ascontiguousarray(vectors), min(k, self.index.ntotal))
        return items, np.where(items >= 0, scores, -np.inf).astype(np.float32)

    def recall(self, vectors: Float32Array, queries: Float32Array, k: int) -> float:
        """Share of the exact k most similar ``vectors`` that the index finds. Ties in similarity are tolerated."""
        k = min(k, len(vectors))
        exact = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[0]
        _, scores = self.similar(queries, k)
        return float((scores >= exact[:, -1:] - 1e-6).mean())

    def save(self, folder: Path) -> None:
        """The index in Faiss's format, settings as JSON."""
        faiss.write_index(self.index, str(folder / _INDEX))
        settings = self.settings.model_dump(exclude={"minimum_recall"})  # it belongs to the check, not to the index
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        settings = IndexSettings(**json.loads((folder / _SETTINGS).read_text()))
        return cls(faiss.read_index(str(folder / _INDEX)), settings)
