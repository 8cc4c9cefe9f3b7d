"""Semantic item vectors (ReLLa, section 3.2): a language model's states for item descriptions, reduced by PCA."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from rarec.config import Settings
from rarec.data.sequences import ranges
from rarec.errors import InputError, one_line
from rarec.rella.language_model import ModelReference, pad
from rarec.retrieval.index import normalised
from rarec.text.reader import PromptReader, first_tokens
from rarec.text.tokens import by_length
from rarec.training.out_of_memory import explain_out_of_memory
from rarec.types import Float32Array

VECTORS = "vectors.npy"  # the file of an artifact that holds them
WORDS, SENTENCE = "tf-idf", "sentence-transformers:"


class VectorSettings(Settings):
    """Which encoder makes the vectors, and how long they are."""

    encoder: str = Field(
        default="language-model",
        description="`language-model`; `tf-idf`, the words of the descriptions; or an encoder of the package "
        "sentence-transformers, as `sentence-transformers:<folder>` or `sentence-transformers:<name>@<revision>`.",
    )
    dimensions: int = Field(default=512, ge=1, description="Most principal components; the paper has 512.")
    batch_tokens: int = Field(default=8192, ge=64, description="Most tokens of a padded batch of descriptions.")

    @model_validator(mode="after")
    def _known(self) -> "VectorSettings":
        if self.encoder not in ("language-model", WORDS) and not re.match(f"{SENTENCE}.+", self.encoder):
            raise ValueError(
                f"encoder = {self.encoder!r} must be language-model, {WORDS}, {SENTENCE}<folder> or "
                f"{SENTENCE}<name>@<revision>"
            )
        return self


def sentence_encoder_folder(encoder: str) -> Path | None:
    """The folder of a sentence encoder; None if it comes from a hub, or is none.

    Raises:
        InputError: There is neither such a folder nor a revision of a name.
    """
    if not encoder.startswith(SENTENCE):
        return None
    name = encoder.removeprefix(SENTENCE)
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if "@" not in name:
        raise InputError(
            f"encoder = {encoder}: there is no such folder; a name from a hub needs a revision: {encoder}@<revision>"
        )
    return None


def encode(
    reference: ModelReference, texts: list[str], device: torch.device, settings: VectorSettings, cache: Path
) -> tuple[Float32Array, int | None]:
    """(I, D) vectors of texts by the encoder that the settings name; and how many texts were truncated.

    The number is None if no text is, or for a sentence encoder, which truncates texts without telling.
    """
    if settings.encoder == WORDS:
        return describe_by_words(texts, settings.dimensions), None
    if settings.encoder.startswith(SENTENCE):
        return describe_by_sentence_encoder(settings.encoder.removeprefix(SENTENCE), texts, device, cache), None
    longest = reference.context_length()
    return describe(reference.model(device), reference.tokenizer(), texts, device, longest, settings.batch_tokens)


def describe_by_words(texts: list[str], dimensions: int) -> Float32Array:
    """(I, d) vectors of the words of each text, weighted by TF-IDF: their latent semantic analysis, d <= dimensions.

    Raises:
        InputError: There is no word.
    """
    from sklearn.decomposition import TruncatedSVD  # not above: loading it takes a second
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        words = TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise InputError(f"encoder = {WORDS}: the descriptions have no words; use another encoder") from error
    parts = min(dimensions, *words.shape)
    return TruncatedSVD(parts, random_state=0).fit_transform(words).astype(np.float32)


def describe_by_sentence_encoder(name: str, texts: list[str], device: torch.device, cache: Path) -> Float32Array:
    """(I, D) embeddings of texts by a model of the package sentence-transformers.

    Raises:
        InputError: The package or the model is missing, or memory runs out.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"encoder = {SENTENCE}{name} needs the package sentence-transformers; pip install sentence-transformers"
        ) from error
    try:
        place, _, revision = name.partition("@")
        model = SentenceTransformer(place, device=str(device), cache_folder=str(cache), revision=revision or None)
    except (OSError, ValueError) as error:
        raise InputError(f"encoder = {SENTENCE}{name} cannot be loaded: {one_line(error)}") from error
    with explain_out_of_memory(f"encoder = {SENTENCE}{name}: out of memory; use a smaller encoder"):
        return np.asarray(model.encode(texts, show_progress_bar=False), dtype=np.float32)


@torch.no_grad()
def describe(
    model: Any, tokenizer: Any, texts: list[str], device: torch.device, longest: int, batch_tokens: int = 8192
) -> tuple[Float32Array, int]:
    """(I, D) mean hidden states of the last layer over each text's own tokens; and how many texts were truncated.

    Padding and special tokens do not count.

    Args:
        model: A causal language model of transformers.
        texts: Descriptions, none of them empty.
        longest: Most tokens that the model reads. Longer texts are truncated.

    Raises:
        InputError: Out of memory; says what to lower.
    """
    table = PromptReader(tokenizer).documents(texts)
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
        counted = own.mask[:, :, None]  # (b, l, 1); states are (b, l, D)
        result[rows] = ((states.float() * counted).sum(1) / counted.sum(1)).cpu().numpy()
    return result, int((lengths < table.lengths).sum())


def reduce(states: Float32Array, most: int = 512) -> tuple[Float32Array, float]:
    """(I, d) L2-normalised principal components, with d at most ``most``; and the share of variance they explain.

    Raises:
        InputError: States are not finite, or all the same, so that items could not be told apart.
    """
    from sklearn.decomposition import PCA

    if not np.isfinite(states).all():
        row = int(np.flatnonzero(~np.isfinite(states).all(1))[0])
        raise InputError(f"the language model's vector for item {row} is not finite; use another model or data type")
    rank = int(np.linalg.matrix_rank(states - states.mean(0)))
    if rank == 0:
        raise InputError("the language model gives all items the same vector; use another model or other descriptions")
    pca = PCA(min(most, rank), svd_solver="full")
    parts = pca.fit_transform(states.astype(np.float64))
    return normalised(parts), float(pca.explained_variance_ratio_.sum())


def check_vectors(vectors: Float32Array) -> tuple[bool, dict[str, int]]:
    """Whether (I, d) vectors tell items apart; and how many are not finite, zero, or whether all are the same."""
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
