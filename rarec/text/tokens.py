"""Prompts as tokens: each part is tokenised once, and a prompt is the concatenation of its parts' tokens.

These are the tokens of the whole text. Parts end at line ends, where most tokenizers split in any case: prompts that
share lines share tokens, and making thousands of prompts a second is a matter of copying integers. What stands at the
ends of a prompt is tokenised in its place; prompts with a part that a tokenizer joins to another, for example because
its line begins with a blank, are tokenised whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rarec.data.sequences import ranges
from rarec.errors import InputError
from rarec.text.chat import frame_texts
from rarec.text.prompts import NO_PART, PromptParts
from rarec.text.reader import LINE_END, PromptReader, TokenTable, first_tokens
from rarec.types import BoolArray, Int32Array, IntArray

__all__ = [
    "PromptReader",
    "PromptTokens",
    "TokenTable",
    "TokenisedPrompts",
    "by_length",
    "first_tokens",
    "frame_texts",
    "tokenise",
]

_TRIED = 24  # prompts that are tokenised in both ways, to see whether a tokenizer keeps parts apart


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

    def rows(self) -> list[Int32Array]:
        """The tokens of each prompt."""
        return np.split(self.tokens, self.lengths.cumsum()[:-1]) if len(self.lengths) else []


@dataclass(frozen=True)
class Whole:
    """What tokenising prompts as one text needs.

    Attributes:
        parts, reader: The texts, and how the tokenizer reads them.
        joined: (P,) parts whose prompts are tokenised whole.
    """

    parts: PromptParts
    reader: PromptReader
    joined: BoolArray

    def tokens(self, parts: IntArray) -> list[Int32Array]:
        """The tokens of each row's text, with what the chat template writes beside it."""
        return self.reader.messages([self.parts.text(row) for row in parts]).rows()


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of a data set's prompt parts, and the tokens that a language model needs around a prompt.

    Attributes:
        table: Tokens of each part. A profile includes the heading, which itself has none.
        before, after: Tokens around every prompt.
        limit: Most tokens of a prompt.
        whole: Prompts that are tokenised whole; None if there are none.
    """

    table: TokenTable
    before: Int32Array
    after: Int32Array
    limit: int
    whole: Whole | None = None

    @classmethod
    def of(cls, parts: PromptParts, tokenizer: Any, limit: int) -> "PromptTokens":
        """Tokenise all parts for a model that reads at most ``limit`` tokens.

        If the tokenizer has a chat template, the prompt becomes a user's message. Otherwise it begins with the
        tokenizer's usual first token, if there is one.

        Args:
            tokenizer: One of transformers, or its `PromptReader`.

        Raises:
            InputError: The chat template does not write a message, or the tokenizer reads control tokens in text.
        """
        reader = tokenizer if isinstance(tokenizer, PromptReader) else PromptReader(tokenizer)
        texts, heading = parts.texts, parts.lines - 1
        openings = [profile + texts[heading] for profile in texts[:heading]]
        lines = texts[parts.lines : parts.questions]
        few = {text: number for number, text in enumerate(dict.fromkeys(openings))}
        opened = reader.openings(list(few)).rows()
        table = TokenTable.of(
            [
                *(opened[few[text]] for text in openings),
                np.zeros(0, dtype=np.int32),
                *reader.lines(lines).rows(),
                *reader.closings(texts[parts.questions :]).rows(),
            ]
        )
        made = cls(table, reader.before, reader.after, limit)
        joined = np.zeros(len(texts), dtype=bool)
        joined[:heading] = [not (reader.lead + reader.frame.strip_left(text)).endswith(LINE_END) for text in openings]
        joined[parts.lines : parts.questions] = [not text.endswith(LINE_END) for text in lines]
        joined[parts.lines :] |= [not reader.splits_before(text) for text in texts[parts.lines :]]
        whole = Whole(parts, reader, joined)
        if not (reader.local and made._agrees(whole)):
            joined[:] = True
        return cls(table, reader.before, reader.after, limit, whole if joined.any() else None)

    def _agrees(self, whole: Whole) -> bool:
        """Whether some prompts whose parts are tokenised apart have the tokens of the whole text."""
        parts, apart = whole.parts, ~whole.joined
        kinds = ((0, parts.lines - 1), (parts.lines, parts.questions), (parts.questions, len(parts.texts)))
        chosen = [start + np.flatnonzero(apart[start:stop]) for start, stop in kinds]
        if not all(map(len, chosen)):
            return True
        profile, line, question = (some[np.linspace(0, len(some) - 1, _TRIED).astype(np.int64)] for some in chosen)
        rows = np.column_stack([profile, np.full(_TRIED, parts.lines - 1), line, line[::-1], question])
        made = self._assemble(rows, np.ones(rows.shape, dtype=bool)).rows()
        fixed = len(self.before), len(self.after)
        bodies = [row[fixed[0] : len(row) - fixed[1]] for row in made]
        return all(map(np.array_equal, bodies, whole.tokens(rows)))

    def part_lengths(self, parts: IntArray) -> IntArray:
        """(B, K + 3) number of tokens of each part by itself; 0 where there is no part."""
        return np.where(parts == NO_PART, 0, self.table.lengths[parts])

    def prompts(self, parts: IntArray) -> TokenisedPrompts:
        """Assemble prompts. If one exceeds the limit, its oldest behaviours are left out and counted.

        Args:
            parts: (B, K + 3) part numbers from `PromptParts.of`.

        Raises:
            InputError: A prompt exceeds the limit even without any behaviour.
        """
        if self.whole is None:
            return self._apart(parts)
        together = (self.whole.joined[parts] & (parts != NO_PART)).any(1)
        if not together.any():
            return self._apart(parts)
        apart = self._apart(parts[~together])
        others = self._together(parts[together], self.whole)
        lengths, dropped = np.empty((2, len(parts)), dtype=np.int64)
        for chosen, made in ((~together, apart), (together, others)):
            lengths[chosen], dropped[chosen] = made.lengths, made.dropped
        start = lengths.cumsum() - lengths
        tokens = np.empty(int(lengths.sum()), dtype=np.int32)
        for chosen, made in ((~together, apart), (together, others)):
            tokens[ranges(start[chosen], made.lengths)] = made.tokens
        return TokenisedPrompts(tokens, lengths, dropped)

    @property
    def _room(self) -> int:
        return self.limit - len(self.before) - len(self.after)

    def _refuse_longer(self, fixed: IntArray) -> None:
        if len(fixed) and fixed.max() > self._room:
            raise InputError(
                f"a prompt has {int(fixed.max())} tokens without any behaviour, more than the limit of {self.limit}; "
                "shorten the template or the items' texts, or use a language model with a longer context"
            )

    def _apart(self, parts: IntArray) -> TokenisedPrompts:
        """Prompts of parts that are tokenised apart."""
        present = parts != NO_PART
        lengths = self.part_lengths(parts)
        history = lengths[:, 2:-1]
        fixed = lengths.sum(1) - history.sum(1)
        self._refuse_longer(fixed)
        # A behaviour is kept if it fits together with all later ones.
        kept = fixed[:, None] + history[:, ::-1].cumsum(1)[:, ::-1] <= self._room
        dropped = (present[:, 2:-1] & ~kept).sum(1)
        present[:, 2:-1] &= kept
        made = self._assemble(parts, present)
        return TokenisedPrompts(made.tokens, made.lengths, dropped)

    def _assemble(self, parts: IntArray, present: BoolArray) -> TokenisedPrompts:
        """Copy the tokens of the parts that are present."""
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
        return TokenisedPrompts(tokens, total, np.zeros(len(parts), dtype=np.int64))

    def _together(self, parts: IntArray, whole: Whole) -> TokenisedPrompts:
        """Prompts that are tokenised whole."""
        columns = np.arange(parts.shape[1])
        history = (columns >= 2) & (columns < parts.shape[1] - 1)
        present = (parts != NO_PART) & history
        counts = present.sum(1)
        newer = present[:, ::-1].cumsum(1)[:, ::-1]  # behaviours from this one on

        def latest(rows: IntArray, kept: IntArray) -> list[Int32Array]:
            left_out = present[rows] & (newer[rows] > kept[:, None])
            return whole.tokens(np.where(left_out, NO_PART, parts[rows]))

        made = latest(np.arange(len(parts)), counts)
        kept = counts.copy()
        long = np.flatnonzero([len(tokens) > self._room for tokens in made])
        # Bisection: `least` behaviours fit, `most` do not.
        least, most = np.zeros(len(long), dtype=np.int64), counts[long]
        fitting = latest(long, least)
        self._refuse_longer(np.array(list(map(len, fitting)), dtype=np.int64))
        while (open_ := np.flatnonzero(most - least > 1)).size:
            middle = (least[open_] + most[open_]) // 2
            for place, number, tokens in zip(open_, middle, latest(long[open_], middle), strict=True):
                if len(tokens) <= self._room:
                    least[place], fitting[place] = number, tokens
                else:
                    most[place] = number
        for row, number, tokens in zip(long, least, fitting, strict=True):
            made[row], kept[row] = tokens, number
        table = TokenTable.of([np.concatenate([self.before, tokens, self.after]) for tokens in made])
        return TokenisedPrompts(table.tokens, table.lengths, counts - kept)


def tokenise(tokenizer: Any, texts: list[str]) -> TokenTable:
    """Tokens of each text as it is after a line end, without special tokens."""
    return PromptReader(tokenizer).lines(texts)


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
