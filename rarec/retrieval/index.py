"""Faiss indexes by inner product: settings, construction, device."""

import os
from typing import Any, Literal

import faiss
import numpy as np
from pydantic import Field, model_validator

from rarec.config import Settings
from rarec.errors import InputError
from rarec.types import Float32Array

GPU_MOST = 2048  # neighbours of one query that Faiss can find on a GPU


class IndexSettings(Settings):
    """Kind of index, and how good it has to be."""

    index: Literal["flat", "ivf", "hnsw"] = Field(
        default="flat",
        description="Faiss index: exact inner product, inverted lists, or a navigable small-world graph.",
    )
    ivf_lists: int = Field(default=128, ge=1, description="Inverted lists (index = ivf).")
    ivf_probes: int = Field(default=8, ge=1, description="Lists searched for each query (index = ivf).")
    hnsw_links: int = Field(default=32, ge=4, description="Links a node (index = hnsw).")
    hnsw_search: int = Field(default=128, ge=8, description="Candidates kept while searching (index = hnsw).")
    minimum_recall: float = Field(
        default=0.9, ge=0, le=1, description="The asset check fails below this recall@20 against exact search."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the recall sample and of the inverted lists' training.")

    @model_validator(mode="after")
    def _probes_exist(self) -> "IndexSettings":
        if self.index == "ivf" and self.ivf_probes > self.ivf_lists:
            raise ValueError(f"ivf_probes = {self.ivf_probes} exceeds ivf_lists = {self.ivf_lists}")
        return self


def new_index(directions: Float32Array, settings: IndexSettings, what: str) -> Any:
    """An empty (but trained) index for L2-normalised ``directions`` (N, D), which are ``what``.

    Raises:
        InputError: more inverted lists than vectors.
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
        raise InputError(f"ivf_lists = {settings.ivf_lists} exceeds the {len(directions)} {what}; lower it")
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, settings.ivf_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = settings.seed
    index.nprobe = settings.ivf_probes
    index.train(directions)
    return index


def can_use_gpu(settings: IndexSettings, count: int) -> bool:
    """Whether Faiss was built for GPUs, has one, and can search such an index for ``count`` neighbours there."""
    has_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    return has_gpu and settings.index != "hnsw" and count <= GPU_MOST


def gpus_of_this_process() -> list[int]:
    """A training worker's own GPU, where its peers do the same on theirs; else all that Faiss sees."""
    if "LOCAL_RANK" in os.environ:
        return [int(os.environ["LOCAL_RANK"])]
    return list(range(faiss.get_num_gpus()))


def normalised(vectors: Float32Array) -> Float32Array:
    """An L2-normalised float32 copy (Faiss would normalise in place, in memory that a tensor may share)."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
