"""Behaviour retrieval through a Faiss index over the items, sample by sample: slow, but by another way."""

from functools import partial
from typing import Any

import faiss
import numpy as np
import torch

from rarec.data.sequences import user_at
from rarec.retrieval.subr import distance_type, most_similar, write_distances
from rarec.types import Distances, Float32Array, IntArray

SURPLUS = 16  # items fetched beyond K, to see whether the K-th is tied


def retrieve_behaviours_by_index(
    index: Any, vectors: Float32Array, items: IntArray, offsets: IntArray, position: IntArray, k: int
) -> Distances:
    """What `retrieve_behaviours` must give, from a Faiss index over the item vectors whose ids are the items.

    An id selector confines the search for each target to the items of its history.
    """
    index, parameters = _exhaustive(index)
    out = np.zeros((len(position), k), dtype=distance_type(offsets))
    starts = offsets[user_at(offsets, position)]
    for sample, (target, start) in enumerate(zip(position.tolist(), starts.tolist(), strict=True)):
        history = items[start:target]
        allowed = parameters(sel=faiss.IDSelectorBatch(np.unique(history)))
        fetch = k + SURPLUS
        while True:
            scores, found = index.search(vectors[None, items[target]], min(fetch, len(vectors)), params=allowed)
            real = found[0] >= 0
            # Items that tie with the K-th may come after the last one fetched.
            if not real.all() or fetch >= len(vectors) or scores[0, k - 1] > scores[0, -1]:
                break
            fetch *= 4
        score = np.full(len(vectors), -np.inf, dtype=np.float32)
        score[found[0, real]] = scores[0, real]
        kept = most_similar(torch.from_numpy(score[history])[None], torch.tensor([len(history)]), k)
        reached = kept.numpy() & np.isfinite(score[history])
        write_distances(out, np.array([sample]), reached, np.array([target - start]))
    return out


def _exhaustive(index: Any) -> tuple[Any, Any]:
    """An index and what makes its search parameters, such that a search confined to few items misses none of them.

    All inverted lists are searched. A walk through a graph would end before it reaches a history's items, so its
    vectors are searched without the graph.
    """
    plain: Any = faiss.SearchParameters  # whose keywords its types do not know
    of_lists: Any = faiss.SearchParametersIVF
    within = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    if isinstance(within, faiss.IndexIVF):
        return index, partial(of_lists, nprobe=within.nlist)
    if isinstance(within, faiss.IndexHNSW):
        flat = faiss.IndexIDMap2(faiss.IndexFlatIP(within.d))
        ids = np.arange(within.ntotal) if within is index else faiss.vector_to_array(index.id_map)
        flat.add_with_ids(within.storage.reconstruct_n(0, within.ntotal), ids)
        return flat, plain
    return index, plain
