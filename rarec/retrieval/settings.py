"""Settings of the item index and of the memory bank."""

from typing import Literal

from pydantic import Field, model_validator

from rarec.config import Settings


class IndexSettings(Settings):
    """Kind of index, and how good it must be."""

    index: Literal["flat", "ivf", "hnsw"] = Field(
        default="flat",
        description="Faiss index: exact inner product (flat), inverted lists (ivf), or a small-world graph (hnsw).",
    )
    ivf_lists: int = Field(default=128, ge=1, description="Number of inverted lists (index = ivf).")
    ivf_probes: int = Field(default=8, ge=1, description="Lists searched per query (index = ivf).")
    hnsw_links: int = Field(default=32, ge=4, description="Links per node (index = hnsw).")
    hnsw_search: int = Field(default=128, ge=8, description="Candidates kept while searching (index = hnsw).")
    minimum_recall: float = Field(
        default=0.9, ge=0, le=1, description="The asset check fails if recall@20 against exact search is lower."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the recall sample and of training the inverted lists.")

    @model_validator(mode="after")
    def _probes_exist(self) -> "IndexSettings":
        if self.index == "ivf" and self.ivf_probes > self.ivf_lists:
            raise ValueError(f"ivf_probes = {self.ivf_probes} exceeds ivf_lists = {self.ivf_lists}")
        return self


class MemorySettings(IndexSettings):
    """The collaborative memory bank and its search (RaSeRec, section 3.3)."""

    time_cut: bool = Field(
        default=False,
        description="Retrieve only memories whose next item was known at the time of the query; needs a clock.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MemorySettings":
        if self.time_cut and self.index != "flat":
            raise ValueError(f"time_cut needs exact search; set index = flat instead of {self.index}")
        return self
