"""Language models: from a hub, from a folder, or trained here on the data.

A model folder holds what `transformers` writes: config.json, weights as safetensors, and the tokenizer's files. So all
later stages load models in the same way, wherever they come from.
"""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rarec.config import Settings
from rarec.errors import InputError, one_line
from rarec.rella.model_folder.fetching import HUB, fetch
from rarec.rella.model_folder.weights import read_model
from rarec.text.reader import PromptReader
from rarec.training.device import on_device

Quantisation = Literal["none", "8bit", "nf4"]
REFERENCE = "reference.json"
SCRATCH = "scratch"
_HOOKED = threading.Lock()


class LanguageModelSettings(Settings):
    """Which language model reads the prompts; and the size and training of one that is trained here."""

    source: str = Field(
        default=SCRATCH,
        description="`hub:<name>@<revision>`, `path:<folder>`, or `scratch`: a small Llama trained here on the "
        "catalogue and the training histories.",
    )
    max_tokens: int = Field(
        default=2048, ge=32, description="Most tokens of a prompt; the model's own limit applies if it is lower."
    )
    quantisation: Quantisation = Field(
        default="none", description="Quantisation of the weights; 8bit and nf4 need a GPU."
    )
    vocabulary: int = Field(default=4096, ge=300, description="scratch: size of the byte-level BPE vocabulary.")
    dim: int = Field(default=64, ge=8, description="scratch: width.")
    layers: int = Field(default=2, ge=1, description="scratch: layers.")
    heads: int = Field(default=4, ge=1, description="scratch: attention heads; must divide dim.")
    behaviours: int = Field(default=30, ge=1, description="scratch: behaviours per piece of history.")
    epochs: int = Field(
        default=10,
        ge=1,
        description="scratch: passes over descriptions and histories, or over random parts of them (see tokens).",
    )
    tokens: int = Field(
        default=12_000_000,
        ge=1,
        description="scratch: most tokens to read in total, at least epochs times max_tokens. If the data have more, "
        "each epoch reads the descriptions (at most half of its tokens) and a random part of the histories.",
    )
    ratings: bool = Field(
        default=True,
        description="scratch: read each behaviour with its rating. If false, it reads titles and their order, no "
        "opinions, so ratings teach it nothing but as shots.",
    )
    batch_tokens: int = Field(default=3072, ge=64, description="scratch: tokens per training step.")
    learning_rate: float = Field(default=2e-3, gt=0, description="scratch: peak learning rate of AdamW.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="scratch: dropout on attention weights.")
    seed: int = Field(default=42, ge=0, description="scratch: seed of weights and data order.")

    @model_validator(mode="after")
    def _consistent(self) -> "LanguageModelSettings":
        if self.source != SCRATCH and not self.source.startswith("path:") and not HUB.match(self.source):
            raise ValueError(
                f"source = {self.source!r} must be scratch, path:<folder> or hub:<name>@<revision> (with a revision, "
                "as the model must not change)"
            )
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim = {self.dim} must be an even multiple of heads = {self.heads}")
        if self.source == SCRATCH and self.tokens < self.epochs * self.max_tokens:
            raise ValueError(
                f"tokens = {self.tokens} is less than epochs = {self.epochs} times max_tokens = {self.max_tokens}; "
                f"raise tokens to {self.epochs * self.max_tokens}, or lower the others"
            )
        return self


def read_untuned(source: str, ratings: bool) -> str:
    """What of the data set a language model with these settings has read before it is tuned, in words."""
    if source != SCRATCH:
        return "nothing of these data"
    return "every training rating" if ratings else "titles in training histories, no rating"


@dataclass(frozen=True)
class ModelReference:
    """The language model of a data set, and where its files are.

    Attributes:
        source, quantisation, max_tokens: As in the settings.
        revision: What pins the source: a commit of the hub, or the hash of a folder's files.
        folder: Where the files are now.
    """

    source: str
    revision: str
    folder: Path
    quantisation: Quantisation
    max_tokens: int

    def save(self, artifact: Path) -> None:
        """Write the reference into ``artifact``, which itself holds the files of a model that was trained here."""
        record: dict[str, Any] = {"source": self.source, "revision": self.revision}
        record |= {"quantisation": self.quantisation, "max_tokens": self.max_tokens}
        (artifact / REFERENCE).write_text(json.dumps(record, indent=1))

    @classmethod
    def open(cls, artifact: Path, cache: Path | None = None) -> "ModelReference":
        """Read what `save` wrote; fetch the model if this machine does not have it.

        Raises:
            InputError: The model cannot be fetched, or has changed.
        """
        record = json.loads((artifact / REFERENCE).read_text())
        folder = artifact
        if match := HUB.match(record["source"]):
            folder = fetch(f"hub:{match['name']}@{record['revision']}", cache)[0]
        elif record["source"] != SCRATCH:
            folder, revision = fetch(record["source"], cache)
            if revision != record["revision"]:
                raise InputError(
                    f"the files in {folder} ({revision}) have changed since `base_language_model` was materialised "
                    f"({record['revision']}); materialise it again, or restore the files"
                )
        return cls(**record, folder=folder)

    def tokenizer(self) -> Any:
        """The model's tokenizer; see `load_tokenizer`."""
        return load_tokenizer(self.folder)

    def model(self, device: torch.device) -> Any:
        """The model; see `load_model`."""
        return load_model(self.folder, device, self.quantisation)

    def context_length(self) -> int:
        """Most tokens of a prompt that both the setting and the model allow."""
        from transformers import AutoConfig

        return context_length(AutoConfig.from_pretrained(self.folder), self.max_tokens)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; one that is saved in sentencepiece's form is converted.

    Raises:
        InputError: There is none, or it is a slow one, which does not tell the positions of its tokens in the text.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the package tokenizers raises nothing more special for a damaged file
        raise InputError(
            f"{folder}: the tokenizer cannot be read: {one_line(error)}. Copy the tokenizer's files again "
            "(tokenizer.json or tokenizer.model, and tokenizer_config.json)"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: slow tokenizers are not supported; save the model with a tokenizer.json")
    return tokenizer


def load_model(folder: Path, device: torch.device, quantisation: Quantisation = "none") -> Any:
    """The folder's causal language model in evaluation mode, in bfloat16 on a GPU and float32 on a CPU.

    Raises:
        InputError: Weights are missing or damaged, the model is bidirectional, or quantisation is not possible on this
            machine.
    """
    options: dict[str, Any] = {"dtype": torch.bfloat16 if device.type == "cuda" else torch.float32}
    if quantisation != "none":
        from transformers import BitsAndBytesConfig

        _require_bitsandbytes(device, quantisation)
        options["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True)
            if quantisation == "8bit"
            else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        )
    if device.type == "cuda":  # load there directly: the machine's memory need not hold a model for each rank
        options["device_map"] = {"": device}
    model = read_model(folder, **options)
    if quantisation == "none":
        torch.nn.Module.to(model, device)
    model.eval()
    if not is_causal(model):
        raise bidirectional(folder)
    return model


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Whether later tokens leave the output at earlier ones unchanged. Encoders like BERT load as causal models."""
    last = model.get_input_embeddings().weight.shape[0] - 1
    tokens = torch.tensor([[0] + [1] * 7, [0] + [last] * 7], device=model.device)
    one, other = model(input_ids=tokens, use_cache=False).logits[:, 0].float()
    # Equal up to rounding, which may differ between rows of a product.
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    return not bool((one - other).abs().max() > tolerance * one.abs().max())


def bidirectional(folder: Path) -> InputError:
    """What to tell the user about a model that is not causal."""
    return InputError(
        f"{folder}: the language model is bidirectional (later tokens change its output at earlier ones), so it "
        "cannot score prompts; use a causal one"
    )


def _require_bitsandbytes(device: torch.device, quantisation: str) -> None:
    from importlib.util import find_spec

    if device.type != "cuda" or find_spec("bitsandbytes") is None:
        raise InputError(
            f"quantisation = {quantisation} needs a GPU and the package bitsandbytes; set quantisation = none"
        )


@dataclass(frozen=True)
class Answers:
    """The two tokens whose logits are compared."""

    yes: int
    no: int

    @property
    def tokens(self) -> list[int]:
        """No, then yes, so that the label is the index."""
        return [self.no, self.yes]


def find_answers(tokenizer: Any, yes: str, no: str, question: str = ":") -> Answers:
    """The single tokens of both answers behind a prompt that ends with ``question``.

    Between prompt and answer is what the chat template writes there, else a space, unless the prompt ends with white
    space. If the answers are no single tokens in this form, they are tried in the other one.

    Args:
        tokenizer: One of transformers, or its `PromptReader`.

    Raises:
        InputError: In no form are both answers a single token.
    """
    reader = tokenizer if isinstance(tokenizer, PromptReader) else PromptReader(tokenizer)
    for one, other in reader.answers((yes, no), question):
        if one != other:
            return Answers(one, other)
    raise InputError(
        f"the tokenizer has no single tokens for {yes!r} and {no!r}, with or without a space before them; set the "
        "template's `yes` and `no` to words that it has"
    )


def context_length(model_config: Any, max_tokens: int) -> int:
    """Most tokens of a prompt that both the setting and the model allow."""
    for name in ("max_position_embeddings", "n_positions"):
        most = getattr(model_config, name, None)
        if most:
            return min(max_tokens, int(most))
    return max_tokens


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts as a rectangle, padded on the right.

    Tokens of a causal model do not see what comes after them, so the model needs no attention mask, and attention is
    faster without one. `mask` is for means over places, and for attention from the last place alone.

    Attributes:
        tokens: (B, l) int64.
        lengths: (B,) int64.
    """

    tokens: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, l) true for real tokens."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


def pad(tokens: np.ndarray, lengths: np.ndarray, rows: np.ndarray, device: torch.device) -> PaddedBatch:
    """A batch of the prompts ``rows`` out of the concatenated ``tokens``."""
    chosen = lengths[rows]
    starts = (np.cumsum(lengths) - lengths)[rows]
    place = np.arange(int(chosen.max(initial=0)))
    real = place < chosen[:, None]
    ids = np.where(real, tokens[np.where(real, starts[:, None] + place, 0)], 0)
    parts = (torch.from_numpy(part.astype(np.int64)) for part in (ids, chosen))
    return PaddedBatch(*(on_device(part, device) for part in parts))


def last_logits(model: Any, batch: PaddedBatch) -> Tensor:
    """(B, V) logits after each prompt. Logits of other places are not computed.

    One thread at a time, as a hook of the output layer runs in all threads that call the model.
    """
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)

    def last(_: nn.Module, states: tuple[Tensor, ...]) -> Tensor:
        return states[0][rows, batch.lengths - 1][:, None]

    with _HOOKED:
        hook = model.get_output_embeddings().register_forward_pre_hook(last)
        try:
            logits: Tensor = model(input_ids=batch.tokens, use_cache=False).logits
        finally:
            hook.remove()
    return logits[:, 0]
