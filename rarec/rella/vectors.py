"""Semantic item vectors (ReLLa, section 3.2): what a language model makes of an item's description."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from sklearn.decomposition import PCA

from rarec.config import Settings
from rarec.data.sequences import ranges
from rarec.errors import InputError, one_line
from rarec.rella.language_model import ModelReference, pad
from rarec.retrieval.index import normalised
from rarec.text.tokens import by_length, first_tokens, tokenise
from rarec.training.out_of_memory import explain_out_of_memory
from rarec.types import Float32Array

VECTORS = "vectors.npy"  # the file of an artifact that holds them
SENTENCE = "sentence-transformers:"


class VectorSettings(Settings):
    """What makes the vectors, and how long they are."""

    encoder: str = Field(
        default="language-model",
        description="`language-model`, or for an encoder of that package `sentence-transformers:<folder>` or "
        "`sentence-transformers:<name>@<revision>`.",
    )
    dimensions: int = Field(default=512, ge=1, description="Most principal components (the paper's 512).")
    batch_tokens: int = Field(default=8192, ge=64, description="Most tokens of a padded batch of descriptions.")

    @model_validator(mode="after")
    def _known(self) -> "VectorSettings":
        if self.encoder != "language-model" and not re.match(f"{SENTENCE}.+", self.encoder):
            raise ValueError(
                f"encoder = {self.encoder!r} is neither language-model nor {SENTENCE}<folder> or "
                f"{SENTENCE}<name>@<revision>"
            )
        return self


def sentence_encoder_folder(encoder: str) -> Path | None:
    """The folder of a sentence encoder; None for one from a hub, or for the language model.

    Raises:
        InputError: neither a folder nor a name with its revision.
    """
    if not encoder.startswith(SENTENCE):
        return None
    name = encoder.removeprefix(SENTENCE)
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if "@" not in name:
        raise InputError(
            f"encoder = {encoder}: no such folder; a name from a hub needs its revision: {encoder}@<revision>"
        )
    return None


def encode(
    reference: ModelReference, texts: list[str], device: torch.device, settings: VectorSettings, cache: Path
) -> tuple[Float32Array, int | None]:
    """(I, D) vectors of the texts by the encoder that the settings name; and how many texts were cut.

    A sentence encoder cuts texts by itself and does not tell: None.
    """
    if settings.encoder.startswith(SENTENCE):
        return describe_by_sentence_encoder(settings.encoder.removeprefix(SENTENCE), texts, device, cache), None
    longest = reference.context_length()
    return describe(reference.model(device), reference.tokenizer(), texts, device, longest, settings.batch_tokens)


def describe_by_sentence_encoder(name: str, texts: list[str], device: torch.device, cache: Path) -> Float32Array:
    """(I, D) embeddings of a model of the package sentence-transformers.

    Raises:
        InputError: the package or the model is missing, or memory is short.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"encoder = {SENTENCE}{name} needs the package sentence-transformers: pip install sentence-transformers"
        ) from error
    try:
        place, _, revision = name.partition("@")
        model = SentenceTransformer(place, device=str(device), cache_folder=str(cache), revision=revision or None)
    except (OSError, ValueError) as error:
        raise InputError(f"encoder = {SENTENCE}{name} cannot be had: {one_line(error)}") from error
    with explain_out_of_memory(f"encoder = {SENTENCE}{name}: out of memory; use a smaller encoder"):
        return np.asarray(model.encode(texts, show_progress_bar=False), dtype=np.float32)


@torch.no_grad()
def describe(
    model: Any, tokenizer: Any, texts: list[str], device: torch.device, longest: int, batch_tokens: int = 8192
) -> tuple[Float32Array, int]:
    """(I, D) mean of the last layer's hidden states over each text's own tokens: no padding, no special token; and how
    many texts lost their ends.

    Args:
        model: a causal language model of transformers.
        texts: descriptions, none of them empty.
        longest: tokens that the model reads; what a text has beyond them is cut.

    Raises:
        InputError: memory is short; says what to lower.
    """
    table = tokenise(tokenizer, texts)
    before = first_tokens(tokenizer)
    lengths = np.minimum(table.lengths, longest - len(before))
    kept = table.tokens[ranges(table.offsets[:-1], lengths)]
    width = model.get_input_embeddings().weight.shape[1]
    result = np.zeros((len(texts), width), dtype=np.float32)
    for rows in by_length(lengths + len(before), batch_tokens):
        own = pad(kept, lengths, rows, device)
        special = torch.from_numpy(before.astype(np.int64)).to(device).expand(len(rows), -1)
        tokens = torch.cat([special, own.tokens], 1)
        with explain_out_of_memory(
            f"out of memory with {len(rows)} descriptions of up to {tokens.shape[1]} tokens at once; lower "
            f"batch_tokens of semantic_item_vectors below {tokens.numel()}"
        ):
            states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, len(before) :]
        counted = own.mask[:, :, None]
        result[rows] = ((states.float() * counted).sum(1) / counted.sum(1)).cpu().numpy()
    return result, int((lengths < table.lengths).sum())


def reduce(states: Float32Array, most: int = 512) -> tuple[Float32Array, float]:
    """(I, d) L2-normalised principal components, d the smaller of ``most`` and the rank; and the variance they explain.

    Raises:
        InputError: the states are not finite, or all the same, so that nothing could be told apart.
    """
    if not np.isfinite(states).all():
        row = int(np.flatnonzero(~np.isfinite(states).all(1))[0])
        raise InputError(f"the language model gives no finite vector for item {row}; use another model or data type")
    rank = int(np.linalg.matrix_rank(states - states.mean(0)))
    if rank == 0:
        raise InputError("the language model gives all items the same vector; use another model or other descriptions")
    pca = PCA(min(most, rank), svd_solver="full")
    parts = pca.fit_transform(states.astype(np.float64))
    return normalised(parts), float(pca.explained_variance_ratio_.sum())


def check_vectors(vectors: Float32Array) -> tuple[bool, dict[str, int]]:
    """Whether (I, d) vectors can tell items apart, and how many are not finite, zero, or like the first one."""
    finite = np.isfinite(vectors).all(1)
    zero = finite & (np.abs(vectors).sum(1) == 0)
    same = bool(len(vectors) > 1 and (vectors == vectors[0]).all())
    details = {
        "items": len(vectors),
        "not_finite": int((~finite).sum()),
        "zero": int(zero.sum()),
        "all_the_same": int(same),
    }
    return bool(finite.all() and not zero.any() and not same), details
