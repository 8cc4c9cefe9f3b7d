"""Yes or no: the probability that a language model's answer begins with yes (ReLLa, section 3.1).

Only the logits behind each prompt are computed, and batches hold prompts of similar length, so that no time goes into
padding or into words that nobody asks for. On a CPU, small models of Llama's form go through `CpuDecoder`.
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

_CHUNK = 8192  # prompts put together at once, so that the first batch is scored at once
MANY = 256  # prompts for which the weights are worth arranging


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
    """(N,) probability of yes against no, and (N,) behaviours dropped for the token limit.

    Args:
        parts: (N, K + 3) prompts, as `PromptParts.of` gives them.
        batch_tokens: most tokens of a padded batch; `BATCH_TOKENS` at most where `CpuDecoder` does it.
        setting: what ``batch_tokens`` is called where it is set, for the message.

    Raises:
        InputError: memory is short; says what to lower.
    """
    was_training = model.training
    model.eval()
    probability = np.zeros(len(parts))
    dropped = np.zeros(len(parts), dtype=np.int64)
    done = 0
    with explain_out_of_memory("out of memory while the language model's weights are arranged; use a smaller one"):
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
        answered = []  # fetched at the chunk's end: a GPU goes on while the next batch is laid out
        for rows in by_length(made.lengths, batch_tokens):
            batch = pad(made.tokens, made.lengths, rows, device)
            with explain_out_of_memory(out_of_memory(batch, setting)):
                logits = answer_logits(batch)
            done += len(rows)
            report(step=done, steps=len(parts), unit="prompt", force=done == len(parts))
            answered.append((rows, logits.double().softmax(1)[:, 1]))
        for rows, yes in answered:
            probability[start + rows] = yes.cpu().numpy()
    model.train(was_training)
    return probability, dropped


def out_of_memory(batch: PaddedBatch, setting: str) -> str:
    """What to tell when the device's memory does not hold a batch."""
    prompts, longest = batch.tokens.shape
    return (
        f"out of memory with {prompts} prompts of up to {longest} tokens at once; lower {setting} below "
        f"{prompts * longest}, or the behaviours in a prompt"
    )
