"""The plain way to do what RaRec does in the ReLLa track: the baseline of every ratio of `benchmarks.rella`.

Written from the paper's method with what NumPy, tokenizers and transformers offer, and no thought for speed: one sample
at a time, every prompt written out and tokenised as a text, batches of a fixed size in the order given, logits of all
words at all places. Behaviours, tokens, probabilities and losses equal ours: the benchmarks themselves check it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.workloads import Films
from rarec.rella.language_model import Answers
from rarec.types import Float32Array, IntArray

BATCH = 32
IGNORED = -100


def plain_behaviours(
    vectors: Float32Array, items: IntArray, offsets: IntArray, position: IntArray, k: int
) -> list[IntArray]:
    """Interactions kept for each target, in time order."""
    kept = []
    for target in position.tolist():
        start = int(offsets[np.searchsorted(offsets, target, side="right") - 1])
        similar = vectors[items[start:target]] @ vectors[items[target]]
        kept.append(start + np.sort(np.argsort(similar)[-k:]))
    return kept


def plain_prompts(films: Films, samples: IntArray, distances: IntArray) -> list[list[int]]:
    """Tokens of the prompts of the samples with behaviours at ``distances`` (B, K) before their targets."""
    source, template = films.source, films.template
    texts = []
    users = source.user(samples).tolist()
    for user, target, row in zip(users, source.samples.position[samples].tolist(), distances.tolist(), strict=True):
        text = films.profiles[user] + template.heading
        for distance in row:
            if distance:
                behaviour = target - distance
                text += template.behaviour.format(
                    item=films.names[source.items[behaviour]], rating=films.ratings[behaviour]
                )
        texts.append(text + template.question.format(item=films.names[source.items[target]]))
    tokens: list[list[int]] = films.tokenizer(texts)["input_ids"]
    return tokens


def padded(rows: Sequence[Sequence[int]], filler: int = 0) -> tuple[Tensor, Tensor]:
    """(B, l) tokens, padded on the left to the longest row, and their mask."""
    width = max(map(len, rows))
    tokens = torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


@torch.no_grad()
def plain_scores(model: Any, prompts: Sequence[Sequence[int]], answers: Answers) -> Float32Array:
    """Probability of yes against no, from that of every word."""
    probability = []
    for start in range(0, len(prompts), BATCH):
        tokens, mask = padded(prompts[start : start + BATCH])
        words = model(input_ids=tokens, attention_mask=mask).logits[:, -1].softmax(-1)
        yes, no = words[:, answers.yes], words[:, answers.no]
        probability.append(yes / (yes + no))
    return torch.cat(probability).numpy()


class PlainTuning:
    """LoRA training of a causal language model on prompts with their answers behind them, as on any text."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[int], learning_rate: float):
        self.model = model
        self.texts = [[*prompt, answer] for prompt, answer in zip(prompts, answers, strict=True)]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate)

    def loss(self, first: int) -> Tensor:
        """Summed loss of a batch: every place has its logits, and only the answers' a label."""
        tokens, mask = padded(self.texts[first : first + BATCH])
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -1] = tokens[:, -1]
        logits = self.model(input_ids=tokens, attention_mask=mask).logits.float()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")

    def epoch(self, batch_size: int) -> None:
        """Train on all prompts in the order given, a step every ``batch_size`` prompts."""
        self.model.train()
        for step in range(0, len(self.texts), batch_size):
            end = min(step + batch_size, len(self.texts))
            self.optimizer.zero_grad()
            for first in range(step, end, BATCH):
                (self.loss(first) / (end - step)).backward()
            self.optimizer.step()
