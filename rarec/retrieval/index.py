"""Faiss indexes by inner product: how they are built, and on which device they search."""

import os
from typing import Any

import faiss
import numpy as np

from rarec.errors import InputError
from rarec.retrieval.settings import IndexSettings
from rarec.types import Float32Array

GPU_MOST = 2048  # most neighbours per query that Faiss can find on a GPU


def new_index(directions: Float32Array, settings: IndexSettings, what: str) -> Any:
    """An empty but trained index for L2-normalised ``directions`` (N, D).

    Args:
        what: What the vectors stand for, for the error.

    Raises:
        InputError: There are more inverted lists than vectors.
    """
    dim = directions.shape[1]
    if settings.index == "flat":
        return faiss.IndexFlatIP(dim)
    index: Any
    if settings.index == "hnsw":
        index = faiss.IndexHNSWFlat(dim, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = settings.hnsw_search
        return index
    if settings.ivf_lists > len(directions):
        raise InputError(f"ivf_lists = {settings.ivf_lists} exceeds the number of {what}, {len(directions)}; lower it")
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, settings.ivf_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = settings.seed
    index.nprobe = settings.ivf_probes
    index.train(directions)
    return index


def can_use_gpu(settings: IndexSettings, count: int) -> bool:
    """Whether Faiss has GPU support and a GPU, and can search such an index for ``count`` neighbours there."""
    has_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    return has_gpu and settings.index != "hnsw" and count <= GPU_MOST


def gpus_of_this_process() -> list[int]:
    """In a training worker its own GPU, as the other ranks use theirs; elsewhere all that Faiss sees."""
    if "LOCAL_RANK" in os.environ:
        return [int(os.environ["LOCAL_RANK"])]
    return list(range(faiss.get_num_gpus()))


def normalised(vectors: Float32Array) -> Float32Array:
    """An L2-normalised float32 copy. Faiss would normalise in place, in memory that a tensor may share."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
