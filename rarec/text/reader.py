"""How a tokenizer reads prompts: text from data as text, whatever it spells, and each piece as in its place.

Tokenizers look for control tokens, such as `</s>` or `<|im_end|>`, in all text. In text from data they must not. So
data is read by a copy of the tokenizer that skips them; control tokens come from the chat template and from the
tokenizer's own beginning of a text.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rarec.errors import InputError
from rarec.text.chat import chat_frame
from rarec.types import Int32Array, IntArray

LINE_END = "\n"
_CHUNK = 4096  # texts tokenised at once
_WORD = "x"  # stands for a message
_PRIVATE = "\ue0f7"  # a private-use character, in the two tokens that stand for those around a message
_OPEN, _CLOSE = f"{_PRIVATE}open{_PRIVATE}", f"{_PRIVATE}close{_PRIVATE}"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # stands for a byte of text: no control token
_MARKUP = re.compile(r"<\S+>")
_SPACES = re.compile(r"[\w\s]+")
# How byte-level tokenizers write the bytes that are not printable: in order, from 256 on.
_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + number): byte for number, byte in enumerate(sorted(set(range(256)) - _PRINTABLE))
}
_BYTE_LINE_END = next(char for char, byte in _BYTE_OF.items() if byte == ord(LINE_END))


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

    @classmethod
    def of(cls, rows: Sequence[Int32Array]) -> "TokenTable":
        """A table of these texts' tokens."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = np.concatenate([np.zeros(0, dtype=np.int32), *rows])
        return cls(np.concatenate([[0], lengths.cumsum()]), flat)

    def rows(self) -> list[Int32Array]:
        """The tokens of each text."""
        return np.split(self.tokens, self.offsets[1:-1]) if len(self) else []


class PromptReader:
    """A tokenizer's reading of prompts.

    A prompt is ``before``, a text that may hold anything, and ``after``. The text consists of `lead`, the message from
    data, and `trail`: what the chat template writes beside the message, up to the next control tokens.

    Attributes:
        tokenizer: The tokenizer of transformers; it is not changed.
        frame: Its chat template's texts around a message.
        before, after: Control tokens around the text, with everything before and after them.
        local: Whether line ends separate texts for this tokenizer; see `splits_before`.
    """

    def __init__(self, tokenizer: Any):
        """Read by ``tokenizer``.

        Raises:
            InputError: Its chat template does not write a message; see `chat_frame`.
        """
        from tokenizers import AddedToken, Tokenizer

        self.tokenizer = tokenizer
        self.frame = chat_frame(tokenizer)
        control = control_tokens(tokenizer)
        self._find_context(control)
        reader = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        reader.no_truncation()
        reader.no_padding()
        joining, self._stop = _beginnings(reader.get_vocab())
        # Special tokens are those that `encode_special_tokens` skips.
        reader.add_special_tokens([_copy(AddedToken, token, token.content, True) for token in control.values()])
        reader.encode_special_tokens = True
        for content, token in ((_OPEN, self._opening), (_CLOSE, self._closing)):
            if token is not None:  # what follows a control token may be read in another way than a text's beginning
                reader.add_tokens([_copy(AddedToken, token, content, False)])
        self._frames = {reader.token_to_id(content) for content in (_OPEN, _CLOSE)} - {None}
        self._reader = reader
        self._joining = joining
        texts = _texts(control)
        self._spelled = re.compile("|".join(sorted(map(re.escape, texts), key=len, reverse=True)) or "(?!)")
        self._never = np.array([number for number, token in control.items() if token.content in texts], dtype=np.int64)
        unknown = tokenizer.unk_token_id
        self._never = self._never[self._never != (-1 if unknown is None else unknown)]
        self.local = self._is_local()

    def _find_context(self, control: dict[int, Any]) -> None:
        """Find the control tokens next to a message, and the texts between them and the message."""
        before, after = self.frame.before, self.frame.after
        text = before + _WORD + after
        tokens, spans = self._exactly(text)
        places = [
            place
            for place, (token, (start, end)) in enumerate(zip(tokens, spans, strict=True))
            if token in control and text[start:end].strip() == control[token].content.strip()
        ]
        opening = [place for place in places if spans[place][1] <= len(before)]
        closing = [place for place in places if spans[place][0] >= len(before) + len(_WORD)]
        self._opening = self._closing = None
        self.lead, self.trail = before, after
        self.before = self.after = np.zeros(0, dtype=np.int32)
        if not getattr(self.tokenizer, "chat_template", None):
            self.before = first_tokens(self.tokenizer)
        if opening:
            self._opening = control[tokens[opening[-1]]]
            self.before = np.array(tokens[: opening[-1] + 1], dtype=np.int32)
            self.lead = before[spans[opening[-1]][1] :]
        if closing:
            self._closing = control[tokens[closing[0]]]
            self.after = np.array(tokens[closing[0] :], dtype=np.int32)
            self.trail = after[: spans[closing[0]][0] - len(before) - len(_WORD)]

    def _exactly(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a text with the control tokens that it spells, and their places in the text."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False
        )
        return encoded["input_ids"], encoded["offset_mapping"]

    def openings(self, messages: Sequence[str]) -> TokenTable:
        """Tokens of the beginnings of messages, with `lead`, before a line."""
        frame = self.frame
        texts = [self.lead + frame.strip_left(message) for message in messages]
        return self._encode(self._open, texts, self._stop)

    def lines(self, texts: Sequence[str]) -> TokenTable:
        """Tokens of lines between other lines."""
        return self._encode(LINE_END, texts, self._stop)

    def closings(self, messages: Sequence[str]) -> TokenTable:
        """Tokens of the ends of messages, with `trail`, after a line."""
        texts = [self.frame.strip_right(message) + self.trail for message in messages]
        return self._encode(LINE_END, texts, self._close)

    def messages(self, messages: Sequence[str]) -> TokenTable:
        """Tokens of whole messages, with `lead` and `trail`."""
        texts = [self.lead + self.frame.strip(message) + self.trail for message in messages]
        return self._encode(self._open, texts, self._close)

    def documents(self, texts: Sequence[str]) -> TokenTable:
        """Tokens of texts that stand alone, without chat template and first token."""
        return self._encode("", texts, "")

    def splits_before(self, text: str) -> bool:
        """Whether no token of this tokenizer spans a line end and the beginning of ``text`` behind it.

        Then a text that ends there and one that begins there have the same tokens apart as together.
        """
        return bool(text) and not text[0].isspace() and text.encode()[0] not in self._joining

    def answers(self, words: tuple[str, str], message: str) -> Iterator[tuple[int, int]]:
        """Tokens of two words, each a single one, behind a prompt that ends with ``message``; the likeliest first."""
        frame = self.frame
        prompt = frame.before + frame.strip(message) + frame.after
        gaps = ["", " "] if prompt[-1:].isspace() else [" ", ""]
        if frame.gap is not None:
            gaps = [frame.gap, *(gap for gap in gaps if gap != frame.gap)]
        given = self._exactly(prompt)[0]

        def behind(text: str) -> list[int]:
            tokens = self._exactly(prompt + text)[0]
            return tokens[len(given) :] if tokens[: len(given)] == given else []

        def after_a_line(text: str) -> list[int]:
            return self._encode(LINE_END, [text], "").tokens.tolist()

        def alone(text: str) -> list[int]:
            return self._exactly(text)[0]

        # The last two are for prompts whose last token would be another one with the answer behind it.
        for gap, read in itertools.product(gaps, (behind, after_a_line, alone)):
            pair = [read(gap + word) for word in words]
            if all(len(tokens) == 1 and tokens[0] != self.tokenizer.unk_token_id for tokens in pair):
                yield pair[0][0], pair[1][0]

    @property
    def _open(self) -> str:
        return _OPEN if self._opening else ""

    @property
    def _close(self) -> str:
        return _CLOSE if self._closing else ""

    def _encode(self, before: str, texts: Sequence[str], after: str) -> TokenTable:
        """Tokens of each text between ``before`` and ``after``, without theirs."""
        rows: list[Int32Array] = []
        for start in range(0, len(texts), _CHUNK):
            part = [self._clean(text) for text in texts[start : start + _CHUNK]]
            rows += self._rows(before, part, after)
        table = TokenTable.of(rows)
        if len(self._never) and np.isin(table.tokens, self._never).any():
            # Some tokenizers find control tokens in their vocabulary of text, too. Such words get a blank inside.
            spaced = [self._spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) for text in texts]
            bad = [number for number, row in enumerate(rows) if np.isin(row, self._never).any()]
            for number in bad:
                (rows[number],) = self._rows(before, [self._clean(spaced[number])], after)
                if np.isin(rows[number], self._never).any():
                    raise InputError(
                        f"the tokenizer reads a control token in the text {texts[number][:80]!r}; use a language model "
                        "with another tokenizer"
                    )
            table = TokenTable.of(rows)
        return table

    def _rows(self, before: str, texts: list[str], after: str) -> list[Int32Array]:
        encoded = self._reader.encode_batch([before + text + after for text in texts], add_special_tokens=False)
        rows = []
        for text, one in zip(texts, encoded, strict=True):
            tokens, spans = one.ids, one.offsets
            first, last = 0, len(tokens)
            begin, end = len(before), len(before) + len(text)
            # Those of the frame may cover white space of the text, too, if their control tokens swallow it.
            while before and first < last and (spans[first][1] <= begin or tokens[first] in self._frames):
                first += 1
            while after and last > first and (spans[last - 1][0] >= end or tokens[last - 1] in self._frames):
                last -= 1
            rows.append(np.array(tokens[first:last], dtype=np.int32))
        return rows

    def _clean(self, text: str) -> str:
        return text.replace(_PRIVATE, "") if _PRIVATE in text else text

    def _is_local(self) -> bool:
        """Whether a line end is a place where texts can be cut, up to what `splits_before` says."""
        if not self._stop:
            return False
        normalizer = self._reader.normalizer
        text = f"{self._stop}{LINE_END}{self._stop}"
        if normalizer is not None and LINE_END not in normalizer.normalize_str(text):
            return False
        spans = self._reader.encode(text, add_special_tokens=False).offsets
        return not any(start < len(text) - 1 < end for start, end in spans)


def control_tokens(tokenizer: Any) -> dict[int, Any]:
    """Added tokens that text from data must not yield, by number.

    These are the special ones, those that the tokenizer declares as control tokens of chats, and of the others those
    that look like markup or that the chat template spells. The rest, such as white space or names of items, is text.
    """
    declared = set(getattr(tokenizer, "chat_control_tokens", None) or ())
    template = tokenizer.get_chat_template() if getattr(tokenizer, "chat_template", None) else ""
    return {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
        or token.content in declared
        or _MARKUP.fullmatch(token.content)
        or (token.content in template and not _SPACES.fullmatch(token.content))
    }


def first_tokens(tokenizer: Any) -> Int32Array:
    """The tokens that the tokenizer puts before every text: a single one, or none."""
    encoded = tokenizer("a")
    first = next((place for place, text in enumerate(encoded.sequence_ids(0)) if text is not None), 0)
    return np.array(encoded["input_ids"][:first], dtype=np.int32)


def _texts(control: dict[int, Any]) -> set[str]:
    """Control tokens that a text could spell; one character, or the name of a byte, is text."""
    return {
        token.content
        for token in control.values()
        if len(token.content.strip()) > 1 and not _BYTE.fullmatch(token.content)
    }


def _copy(kind: Any, token: Any, content: str, special: bool) -> Any:
    """An added token that treats its surroundings as ``token`` does."""
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return kind(content, special=special, **flags)


def _beginnings(vocabulary: dict[str, int]) -> tuple[frozenset[int], str]:
    """First bytes of what follows a line end inside some token; and a character that follows none."""
    joining = set()
    for token in vocabulary:
        if LINE_END in token:
            joining |= {rest.replace("▁", " ").encode()[0] for rest in token.split(LINE_END)[1:] if rest}
        if _BYTE_LINE_END in token:
            joining |= {_BYTE_OF.get(rest[0], 0) for rest in token.split(_BYTE_LINE_END)[1:] if rest}
    stop = next((char for char in "A1x:" if ord(char) not in joining), "")
    return frozenset(joining), stop
