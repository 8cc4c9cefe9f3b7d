"""Exact inner-product search on a GPU, for a Faiss that was built without GPU support."""

import numpy as np
import torch

from rarec.training.device import on_device
from rarec.types import Float32Array, IntArray

_PRODUCTS = 2**28  # products held at once: 1 GiB


class ExactSearch:
    """N vectors of width D on a device, searched like a Faiss index."""

    def __init__(self, vectors: Float32Array, device: torch.device):
        self._vectors = torch.from_numpy(vectors).to(device)

    @property
    def ntotal(self) -> int:
        """Number of vectors, N."""
        return len(self._vectors)

    def first(self, count: int) -> "ExactSearch":
        """A search among the first ``count`` vectors only. They are not copied."""
        part = ExactSearch.__new__(ExactSearch)
        part._vectors = self._vectors[:count]
        return part

    def search(self, queries: Float32Array, count: int) -> tuple[Float32Array, IntArray]:
        """(Q, count) largest products of each query (Q, D) and their vectors, best first; -inf and -1 beyond N.

        As in Faiss, products are computed in float32, and ties are in any order.
        """
        found = min(count, self.ntotal)
        score = np.full((len(queries), count), -np.inf, dtype=np.float32)
        place = np.full((len(queries), count), -1, dtype=np.int64)
        if not found:
            return score, place
        block = max(1, _PRODUCTS // self.ntotal)
        for start in range(0, len(queries), block):
            part = torch.from_numpy(queries[start : start + block])
            best = (on_device(part, self._vectors.device) @ self._vectors.T).topk(found)  # (q, found)
            score[start : start + block, :found] = best.values.cpu().numpy()
            place[start : start + block, :found] = best.indices.cpu().numpy()
        return score, place
