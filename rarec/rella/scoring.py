"""Scoring prompts: the probability that a language model answers yes rather than no (ReLLa, section 3.1).

Only the logits after each prompt are computed, and batches hold prompts of similar length, so little time is spent on
padding. On a CPU, small Llamas go through `CpuDecoder`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarec.rella.decoder import BATCH_TOKENS, cpu_decoder
from rarec.rella.language_model import Answers, PaddedBatch, last_logits, pad
from rarec.text.tokens import PromptTokens, by_length
from rarec.training.out_of_memory import explain_out_of_memory
from rarec.training.progress import ReportProgress, quiet
from rarec.types import Float64Array, IntArray

_CHUNK = 8192  # prompts assembled at once, so that scoring starts soon
MANY = 256  # prompts from which on `CpuDecoder` is worth its preparation


@torch.no_grad()
def score(
    model: Any,
    prompts: PromptTokens,
    parts: IntArray,
    answers: Answers,
    device: torch.device,
    batch_tokens: int = 16384,
    report: ReportProgress = quiet,
    setting: str = "batch_tokens",
) -> tuple[Float64Array, IntArray]:
    """(N,) probability of yes against no, and (N,) behaviours dropped because of the token limit.

    Args:
        parts: (N, K + 3) prompts from `PromptParts.of`.
        batch_tokens: Most tokens of a padded batch; at most `BATCH_TOKENS` with `CpuDecoder`.
        setting: The name of the setting behind ``batch_tokens``, for the error.

    Raises:
        InputError: Out of memory; says what to lower.
    """
    was_training = model.training
    model.eval()
    probability = np.zeros(len(parts))
    dropped = np.zeros(len(parts), dtype=np.int64)
    done = 0
    with explain_out_of_memory("out of memory while preparing the language model's weights; use a smaller model"):
        ours = cpu_decoder(model, answers.tokens, prompts.limit) if len(parts) >= MANY else None
    if ours is not None:
        batch_tokens = min(batch_tokens, BATCH_TOKENS)

    chosen = torch.tensor(answers.tokens, device=device)

    def answer_logits(batch: PaddedBatch) -> Tensor:
        return last_logits(model, batch)[:, chosen] if ours is None else ours.answer_logits(batch)

    for start in range(0, len(parts), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(parts)))
        made = prompts.prompts(parts[part])
        dropped[part] = made.dropped
        answered = []  # fetched at the end of the chunk, so that a GPU works while the next batch is prepared
        for rows in by_length(made.lengths, batch_tokens):
            batch = pad(made.tokens, made.lengths, rows, device)
            with explain_out_of_memory(out_of_memory(batch, setting)):
                logits = answer_logits(batch)
            done += len(rows)
            report(step=done, steps=len(parts), unit="prompt", force=done == len(parts))
            answered.append((rows, logits.double().softmax(1)[:, 1]))  # (b,)
        for rows, yes in answered:
            probability[start + rows] = yes.cpu().numpy()
    model.train(was_training)
    return probability, dropped


def out_of_memory(batch: PaddedBatch, setting: str) -> str:
    """What to tell the user if a batch does not fit into memory."""
    prompts, longest = batch.tokens.shape
    return (
        f"out of memory with {prompts} prompts of up to {longest} tokens at once; lower {setting} below "
        f"{prompts * longest}, or the behaviours in a prompt"
    )
