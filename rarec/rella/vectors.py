"""Semantic item vectors (ReLLa, section 3.2): what a language model makes of an item's description."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA

from rarec.errors import InputError
from rarec.rella.language_model import PaddedBatch, pad
from rarec.text.tokens import by_length, first_tokens, tokenise

FloatArray = npt.NDArray[np.float32]


@torch.no_grad()
def describe(
    model: Any, tokenizer: Any, texts: list[str], device: torch.device, batch_tokens: int = 8192
) -> FloatArray:
    """(I, D) mean of the last layer's hidden states over each text's own tokens: no padding, no special token.

    Args:
        model: a causal language model of transformers.
        texts: descriptions, none of them empty.
    """
    table = tokenise(tokenizer, texts)
    before = first_tokens(tokenizer)
    width = model.get_input_embeddings().weight.shape[1]
    result = np.zeros((len(texts), width), dtype=np.float32)
    lengths = table.lengths
    for rows in by_length(lengths + len(before), batch_tokens):
        own = pad(table.tokens, lengths, rows, device, left=False)
        special = torch.from_numpy(before.astype(np.int64)).to(device).expand(len(rows), -1)
        batch = PaddedBatch(torch.cat([special, own.tokens], 1), torch.cat([torch.ones_like(special), own.mask], 1))
        states = model.base_model(
            input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state[:, len(before) :]
        counted = own.mask[:, :, None]
        result[rows] = ((states.float() * counted).sum(1) / counted.sum(1)).cpu().numpy()
    return result


def reduce(states: FloatArray, most: int = 512) -> FloatArray:
    """(I, d) L2-normalised principal components, d the smallest of ``most``, the rank, and the width.

    Raises:
        InputError: the states are not finite, or all the same, so that nothing could be told apart.
    """
    if not np.isfinite(states).all():
        row = int(np.flatnonzero(~np.isfinite(states).all(1))[0])
        raise InputError(f"the language model gives no finite vector for item {row}; use another model or data type")
    rank = int(np.linalg.matrix_rank(states - states.mean(0)))
    if rank == 0:
        raise InputError("the language model gives all items the same vector; use another model or other descriptions")
    parts = PCA(min(most, rank), svd_solver="full").fit_transform(states.astype(np.float64))
    norms = np.linalg.norm(parts, axis=1, keepdims=True)
    return np.ascontiguousarray(parts / np.maximum(norms, 1e-12), dtype=np.float32)
