"""Settings of the RaSeRec track. Defaults are the paper's for Amazon Beauty, unless a field says otherwise."""

from typing import Literal

from pydantic import Field, model_validator

from rarec.config import Settings, require_distinct
from rarec.training.fit import FitSettings

Control = Literal["random", "itself"]
AttendTo = Literal["similar", Control]


class EncoderSettings(Settings):
    """The sequence encoder (RaSeRec, section 4.1.4)."""

    encoder: Literal["sasrec", "gru4rec", "bert4rec"] = Field(
        default="sasrec", description="Encoder: causal transformer, recurrent network, or bidirectional transformer."
    )
    dim: int = Field(default=64, ge=4, description="Width of item embeddings and user representations.")
    inner_dim: int = Field(default=256, ge=4, description="Width of the feed-forward layers.")
    layers: int = Field(default=2, ge=1, description="Number of encoder layers.")
    heads: int = Field(default=2, ge=1, description="Attention heads; must divide dim.")
    hidden_dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout on embeddings and layer outputs.")
    attention_dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout on attention weights.")
    max_length: int = Field(default=50, ge=1, description="Number of latest items of a history that the encoder reads.")
    context_stride: int = Field(
        default=1,
        ge=1,
        description="For histories longer than max_length, the context starts at a multiple of this, so it holds "
        "max_length - context_stride + 1 to max_length items. 1 is the paper's rule; larger values are cheaper.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderSettings":
        if self.encoder != "gru4rec" and self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} is not a multiple of heads = {self.heads}")
        if self.context_stride > self.max_length:
            raise ValueError(f"context_stride = {self.context_stride} exceeds max_length = {self.max_length}")
        return self


class PretrainSettings(EncoderSettings, FitSettings):
    """Stage 1: collaborative-based pre-training (RaSeRec, section 3.2)."""

    batch_size: int = Field(
        default=256,
        ge=2,
        description="Prefixes per step, over all processes; approximate, as steps hold whole windows.",
    )
    contrastive_weight: float = Field(default=0.1, ge=0, description="Weight of the InfoNCE loss; 0 turns it off.")
    temperature: float = Field(default=1.0, gt=0, description="InfoNCE temperature.")
    seed: int = Field(default=42, ge=0, description="Seed of weights, data order, positives and dropout.")


class FinetuneSettings(FitSettings):
    """Stage 2: retrieval-augmented fine-tuning (RaSeRec, section 3.4)."""

    memories: int = Field(default=20, ge=1, description="K, memories retrieved per query and channel.")
    attend_to: AttendTo = Field(
        default="similar",
        description="What the module attends to: the memories most `similar` to the query; or, as a control, memories "
        "drawn at `random`, or the query `itself` in the place of every memory.",
    )
    alpha: float = Field(
        default=0.5, ge=0, le=1, description="Weight of the encoder's own representation in the output."
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Weight of channel 1 (similar users) in the retrieved part; 1 turns channel 2 off.",
    )
    heads: int = Field(default=2, ge=1, description="Attention heads of the module; must divide the encoder's dim.")
    inner_dim: int = Field(default=256, ge=4, description="Width of the module's feed-forward layer.")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout inside the module.")
    batch_size: int = Field(default=1024, ge=1, description="Prefixes per step, over all processes.")
    seed: int = Field(default=42, ge=0, description="Seed of weights, data order and dropout.")

    @model_validator(mode="after")
    def _consistent(self) -> "FinetuneSettings":
        if self.alpha == 1:
            raise ValueError("alpha = 1 gives the retrieval-augmented module no weight; lower it, or use stage 1 alone")
        return self


class ControlSettings(Settings):
    """Which controls of stage 2 to train."""

    controls: tuple[Control, ...] = Field(
        default=("random", "itself"),
        description="What stands in the place of the retrieved memories: memories drawn at random, or the query "
        "itself. Each is trained like stage 2, with the same settings; none with [].",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ControlSettings":
        require_distinct("controls", self.controls)
        return self


class RecommendSettings(Settings):
    """Settings of the recommendation lists."""

    top_n: int = Field(default=20, ge=1, description="Items per user.")
    exclude_seen: bool = Field(default=True, description="Leave out what the user already has.")
