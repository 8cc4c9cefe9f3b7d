"""Semantic item vectors (ReLLa, section 3.2): what a language model makes of an item's description."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA

from rarec.errors import InputError
from rarec.rella.language_model import PaddedBatch
from rarec.text.tokens import TokenTable, by_length, first_tokens, tokenise

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
        batch, own = _rectangle(table, before, rows, device)
        states = model.base_model(
            input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state.float()
        mean = (states * own[:, :, None]).sum(1) / own.sum(1, keepdim=True)
        result[rows] = mean.cpu().numpy()
    return result


def _rectangle(
    table: TokenTable, before: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], device: torch.device
) -> tuple[PaddedBatch, torch.Tensor]:
    """Texts padded on the right, behind the special tokens; and 1.0 for the tokens that are the text's own."""
    lengths = table.lengths[rows]
    place = np.arange(int(lengths.max()))
    real = place < lengths[:, None]
    own = np.where(real, table.tokens[np.where(real, table.offsets[rows][:, None] + place, 0)], 0)
    special = np.broadcast_to(before, (len(rows), len(before)))
    tokens = torch.from_numpy(np.concatenate([special, own], 1).astype(np.int64)).to(device)
    counted = torch.from_numpy(np.concatenate([np.zeros_like(special), real], 1)).to(device)
    mask = counted.clone()
    mask[:, : len(before)] = 1
    return PaddedBatch(tokens, mask.long()), counted.float()


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
