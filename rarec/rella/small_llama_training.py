"""Training of the small Llama: what it reads in each epoch, and its loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rarec.data.sequences import ranges, user_at
from rarec.rella.language_model import LanguageModelSettings, PaddedBatch, pad
from rarec.text.prompts import NO_PART, PromptParts
from rarec.text.tokens import PromptTokens, by_length
from rarec.training.dropout import random_state, restore_random_state
from rarec.training.engine import rank, shard
from rarec.training.fit import FitSettings
from rarec.training.softmax import full_softmax_loss
from rarec.types import IntArray

SHARES = ("share_of_histories_read", "share_of_descriptions_read")
CLIP = 1.0  # largest norm of a step's gradient


@dataclass(frozen=True)
class HistoryPieces:
    """Training histories, cut into pieces of at most ``behaviours``, at other places in each epoch."""

    parts: PromptParts
    offsets: IntArray
    allowed: IntArray
    behaviours: int

    def of_epoch(self, generator: np.random.Generator) -> IntArray:
        """(D, behaviours + 3) part numbers of the epoch's documents: profile, heading and lines, but no question."""
        user = user_at(self.offsets, self.allowed)
        first = np.searchsorted(user, user)  # index of the user's first interaction in `allowed`
        place = np.arange(len(user)) - first + generator.integers(0, self.behaviours, len(self.offsets))[user]
        piece = place // self.behaviours
        opens = np.flatnonzero((np.diff(user, prepend=-1) != 0) | (np.diff(piece, prepend=-1) != 0))
        size = np.diff(np.append(opens, len(user)))
        rows = np.full((len(opens), self.behaviours + 3), NO_PART)
        rows[:, 0] = self.parts.profiles + user[opens]
        rows[:, 1] = self.parts.lines - 1
        at = ranges(np.full_like(size, 2) + self.behaviours - size, size)
        rows[np.repeat(np.arange(len(opens)), size), at] = self.parts.lines + self.parts.line_of[self.allowed]
        return rows


class LanguageLoss(nn.Module):
    """The model, and the cross-entropy of all tokens but the first."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, batch: tuple[PaddedBatch, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a batch: B documents, and their weight."""
        documents, weight = batch
        states = self.model.model(input_ids=documents.tokens, use_cache=False).last_hidden_state  # (B, l, D)
        wanted = documents.mask[:, 1:]  # (B, l - 1)
        # Logits are most of a small model's work, so padding gets none.
        loss = full_softmax_loss(states[:, :-1][wanted], self.model.lm_head.weight, documents.tokens[:, 1:][wanted])
        return loss * weight, {}


class ScratchObjective:
    """Documents and steps of the small Llama's training. Without validation, the last weights are taken."""

    choice = None

    def __init__(
        self,
        model: Any,
        tokens: PromptTokens,
        pieces: HistoryPieces,
        described: IntArray,
        settings: LanguageModelSettings,
        device: torch.device,
        accumulation: int = 1,
    ):
        self.model = LanguageLoss(model)
        self.tokens, self.pieces, self.described = tokens, pieces, described
        self.settings, self.device, self.accumulation = settings, device, accumulation
        self._documents = tokens.prompts(described[:0])
        self._steps: list[IntArray] = []
        self._shares: dict[str, float] = {}

    def fit_settings(self) -> FitSettings:
        """The settings that `fit` reads."""
        settings = self.settings
        return FitSettings(
            learning_rate=settings.learning_rate, epochs=settings.epochs, patience=settings.epochs, schedule="cosine"
        )

    def start_epoch(self, epoch: int) -> int:
        """Cut the histories, draw the documents to read, and group those of similar length into steps."""
        settings = self.settings
        generator = np.random.default_rng([settings.seed, epoch])
        every = (self.pieces.of_epoch(generator), self.described)
        chosen = _choose(*every, self.tokens, settings.tokens // settings.epochs, generator)
        read, there = ([int(_lengths(self.tokens, rows).sum()) for rows in part] for part in (chosen, every))
        self._shares = {name: n / max(total, 1) for name, n, total in zip(SHARES, read, there, strict=True)}
        self._documents = self.tokens.prompts(np.concatenate(chosen))
        groups = list(by_length(self._documents.lengths, settings.batch_tokens, least=0))  # least > 0: uneven steps
        self._steps = [groups[number] for number in generator.permutation(len(groups))]
        torch.manual_seed(hash((settings.seed, epoch, rank())) % 2**31)
        return len(self._steps)

    def batches(self, first: int = 0) -> Iterator[tuple[Sequence[tuple[PaddedBatch, float]], int]]:
        """This rank's documents of every step."""
        for step in self._steps[first:]:
            parts = np.array_split(shard(step), self.accumulation)
            # A rank without documents takes part with one of weight 0.
            pieces = [(self._padded(rows if len(rows) else step[-1:]), float(len(rows) > 0)) for rows in parts]
            yield pieces, int((self._documents.lengths[step] - 1).sum())

    def _padded(self, rows: IntArray) -> PaddedBatch:
        return pad(self._documents.tokens, self._documents.lengths, rows, self.device)

    def random_state(self) -> dict[str, Tensor]:
        """PyTorch's own generators, from which attention's dropout draws."""
        return random_state(self.device)

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        restore_random_state(state, self.device)

    def validate(self) -> dict[str, float]:
        """Shares of the tokens that the epoch read."""
        return self._shares


def adam_w(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The usual optimizer of language models."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def _choose(
    histories: IntArray, described: IntArray, tokens: PromptTokens, most: int, generator: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Choose an epoch's histories and descriptions, with at most ``most`` tokens together.

    Only descriptions say what an item is, so they come first, but they leave at least half of the tokens to histories.
    """
    room = max(most // 2, most - int(_lengths(tokens, histories).sum()))
    described = _some(described, tokens, room, generator)
    return _some(histories, tokens, most - int(_lengths(tokens, described).sum()), generator), described


def _some(rows: IntArray, tokens: PromptTokens, most: int, generator: np.random.Generator) -> IntArray:
    """Documents with at most ``most`` tokens: all, or as many as fit, drawn at random."""
    lengths = _lengths(tokens, rows)
    if lengths.sum() <= most:
        return rows
    drawn = generator.permutation(len(rows))
    return rows[drawn[: int(np.searchsorted(lengths[drawn].cumsum(), most, side="right"))]]


def _lengths(tokens: PromptTokens, rows: IntArray) -> IntArray:
    """(D,) number of tokens of documents, without those that precede a document."""
    return np.minimum(tokens.part_lengths(rows).sum(1), tokens.limit - len(tokens.before))
