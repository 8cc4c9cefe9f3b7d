"""Prompts as tokens: each part is tokenised once, and a prompt is the concatenation of its parts' tokens.

Parts end at line ends, where tokenizers split anyway. So prompts that share lines share tokens, and making thousands of
prompts a second is a matter of copying integers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from rarec.data.sequences import ranges
from rarec.errors import InputError
from rarec.text.prompts import NO_PART, PromptParts
from rarec.types import Int32Array, IntArray

ANCHOR = "\n"  # precedes nearly every part
# Some chat templates print the date through `strftime_now`. Prompts must not change from day to day.
_DAY = datetime(2024, 7, 1)
_DIRECTIVES = ("Y", "y", "m", "-m", "d", "-d", "e", "B", "b", "A", "a", "j", "H", "I", "M", "S", "p", "F", "D", "T")
FIXED_DAY = (  # a macro, as transformers accepts no functions for a template
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('%{directive}', '{_DAY.strftime('%' + directive)}')" for directive in _DIRECTIVES)
    + " }}{% endmacro %}"
)
_CHUNK = 4096  # texts tokenised at once


@dataclass(frozen=True)
class TokenTable:
    """Tokens of P texts: text ``p`` has ``tokens[offsets[p] : offsets[p + 1]]``."""

    offsets: IntArray
    tokens: Int32Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(P,) tokens of each text."""
        return np.diff(self.offsets)


def tokenise(tokenizer: Any, texts: list[str]) -> TokenTable:
    """Tokens of each text as they are after a line end, without special tokens.

    Sentencepiece tokenizers put a blank before the beginning of a text; after `ANCHOR` they do not.
    """
    rows: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        part = [ANCHOR + text for text in texts[start : start + _CHUNK]]
        encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
        for tokens, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            rows.append([token for token, (_, end) in zip(tokens, spans, strict=True) if end > len(ANCHOR)])
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    offsets = np.concatenate([[0], lengths.cumsum()])
    flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
    return TokenTable(offsets, flat)


@dataclass(frozen=True)
class TokenisedPrompts:
    """B prompts, concatenated.

    Attributes:
        tokens: (T,) int32.
        lengths: (B,) tokens of each prompt.
        dropped: (B,) behaviours left out because of the token limit.
    """

    tokens: Int32Array
    lengths: IntArray
    dropped: IntArray


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of a data set's prompt parts, and the tokens that a language model needs around a prompt."""

    table: TokenTable
    before: Int32Array
    after: Int32Array
    limit: int

    @classmethod
    def of(cls, parts: PromptParts, tokenizer: Any, limit: int) -> "PromptTokens":
        """Tokenise all parts for a model that reads at most ``limit`` tokens.

        If the tokenizer has a chat template, the prompt becomes a user's message. Otherwise it begins with the
        tokenizer's usual first token, if there is one.
        """
        before, after = _frame(tokenizer)
        return cls(tokenise(tokenizer, parts.texts), before, after, limit)

    def part_lengths(self, parts: IntArray) -> IntArray:
        """(B, K + 3) number of tokens of each part; 0 where there is no part."""
        return np.where(parts == NO_PART, 0, self.table.lengths[parts])

    def prompts(self, parts: IntArray) -> TokenisedPrompts:
        """Assemble prompts. If one exceeds the limit, its oldest behaviours are left out and counted.

        Args:
            parts: (B, K + 3) part numbers from `PromptParts.of`.

        Raises:
            InputError: A prompt exceeds the limit even without any behaviour.
        """
        present = parts != NO_PART
        lengths = self.part_lengths(parts)
        room = self.limit - len(self.before) - len(self.after)
        history = lengths[:, 2:-1]
        fixed = lengths.sum(1) - history.sum(1)
        if len(parts) and fixed.max() > room:
            raise InputError(
                f"a prompt has {int(fixed.max())} tokens without any behaviour, more than the limit of {self.limit}; "
                "shorten the template or the items' texts, or use a language model with a longer context"
            )
        # A behaviour is kept if it fits together with all later ones.
        kept = fixed[:, None] + history[:, ::-1].cumsum(1)[:, ::-1] <= room
        dropped = (present[:, 2:-1] & ~kept).sum(1)
        present[:, 2:-1] &= kept
        row, column = np.nonzero(present)
        chosen = parts[row, column]
        sizes = self.table.lengths[chosen]
        body = np.bincount(row, sizes, minlength=len(parts)).astype(np.int64)
        total = body + len(self.before) + len(self.after)
        start = total.cumsum() - total
        tokens = np.empty(int(total.sum()), dtype=np.int32)
        tokens[ranges(start + len(self.before), body)] = self.table.tokens[ranges(self.table.offsets[chosen], sizes)]
        for frame, place in ((self.before, start), (self.after, start + total - len(self.after))):
            tokens[place[:, None] + np.arange(len(frame))] = frame
        return TokenisedPrompts(tokens, total, dropped)


def by_length(lengths: IntArray, most_tokens: int, least: float = 0.875) -> Iterator[IntArray]:
    """Batches of rows of similar length, none of which exceeds ``most_tokens`` when padded.

    No prompt is shorter than ``least`` times the longest one of its batch: another batch costs less than the padding.
    """
    order = np.argsort(lengths, kind="stable")[::-1]
    falling = lengths[order]
    start = 0
    while start < len(order):
        longest = int(falling[start])
        similar = int(np.searchsorted(-falling[start:], -least * longest, side="right"))
        size = max(1, min(similar, most_tokens // longest))
        yield order[start : start + size]
        start += size


def _frame(tokenizer: Any) -> tuple[Int32Array, Int32Array]:
    """Tokens that go before and after a prompt."""
    if getattr(tokenizer, "chat_template", None):
        before, after = frame_texts(tokenizer)
        encode = [tokenizer(part, add_special_tokens=False)["input_ids"] if part else [] for part in (before, after)]
        return np.array(encode[0], dtype=np.int32), np.array(encode[1], dtype=np.int32)
    return first_tokens(tokenizer), np.zeros(0, dtype=np.int32)


def frame_texts(tokenizer: Any) -> tuple[str, str]:
    """Texts that a chat template puts before and after a user's message; empty without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    mark = "\u241f"  # no template contains it
    message = [{"role": "user", "content": mark}]
    template = FIXED_DAY + tokenizer.get_chat_template()
    text = tokenizer.apply_chat_template(message, chat_template=template, tokenize=False, add_generation_prompt=True)
    before, after = text.split(mark)
    return before, after


def first_tokens(tokenizer: Any) -> Int32Array:
    """The tokens that the tokenizer puts before every text: a single one, or none."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = with_special[: len(with_special) - len(plain)] if with_special[-len(plain) :] == plain else []
    return np.array(first, dtype=np.int32)
