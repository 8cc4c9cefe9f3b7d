"""A chat template's frame: what it writes before and after a user's message."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rarec.errors import InputError, one_line

MARK = "\u241f"  # no template contains it
# A message as prompts are: lines, quotes, markup. A template that alters it would alter prompts.
_MESSAGE = f"{MARK}a: 1\nb  \"c\" 'd' <e> &amp; {{f}} \\n {MARK}"
_SYSTEM = "You are a helpful assistant."  # for templates that insist on a system message
# Some chat templates print the date through `strftime_now`. Prompts must not change from day to day.
_DAY = datetime(2024, 7, 1)
_DIRECTIVES = ("Y", "y", "m", "-m", "d", "-d", "e", "B", "b", "A", "a", "j", "H", "I", "M", "S", "p", "F", "D", "T")
_FIXED_DAY = (  # a macro, as transformers accepts no functions for a template
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('%{directive}', '{_DAY.strftime('%' + directive)}')" for directive in _DIRECTIVES)
    + " }}{% endmacro %}"
)


@dataclass(frozen=True)
class Frame:
    """The texts around a message, and what becomes of white space at its ends.

    Attributes:
        before, after: The texts; empty without a chat template.
        strips_left, strips_right: Whether the template strips white space from the message.
        gap: What stands between ``after`` and an assistant's answer where the template writes both; None if it does not
            tell.
    """

    before: str = ""
    after: str = ""
    strips_left: bool = False
    strips_right: bool = False
    gap: str | None = None

    def strip(self, message: str) -> str:
        """The message as the template writes it."""
        return self.strip_left(self.strip_right(message))

    def strip_left(self, beginning: str) -> str:
        """The beginning of a message as the template writes it."""
        return beginning.lstrip() if self.strips_left else beginning

    def strip_right(self, end: str) -> str:
        """The end of a message as the template writes it."""
        return end.rstrip() if self.strips_right else end


def chat_frame(tokenizer: Any) -> Frame:
    """The frame of the tokenizer's chat template.

    The message is given as a text, else as a list of parts, else after a system message: whatever the template takes.

    Raises:
        InputError: The template fails, or does not write a message once and unchanged; says what it does instead.
    """
    if not getattr(tokenizer, "chat_template", None):
        return Frame()
    faults = []
    for system, as_list in ((False, False), (False, True), (True, False), (True, True)):
        try:
            text = _render(tokenizer, _MESSAGE, system, as_list)
        except Exception as error:  # a template is a program: it may fail in any way
            faults.append(f"fails ({type(error).__name__}: {one_line(error)})")
            continue
        if (times := text.count(_MESSAGE)) == 1:
            before, after = text.split(_MESSAGE)
            return _with_blanks(tokenizer, Frame(before, after), system, as_list)
        marks = text.count(MARK)
        faults.append(
            f"writes it {times} times" if times else "alters it" if marks else "does not write it at all",
        )
    raise InputError(
        f"the chat template does not write a user's message once and unchanged: it {faults[0]}. Correct "
        "`chat_template` in the model's folder (chat_template.jinja or tokenizer_config.json), or remove it to prompt "
        "without one"
    )


def _with_blanks(tokenizer: Any, frame: Frame, system: bool, as_list: bool) -> Frame:
    """The frame, and what becomes of white space around the message and before an answer."""
    text = _render(tokenizer, f" \n {_MESSAGE} \n ", system, as_list)
    left, _, right = text.partition(_MESSAGE)
    strips_left, strips_right = left == frame.before, right == frame.after
    if left not in (frame.before, f"{frame.before} \n ") or right not in (frame.after, f" \n {frame.after}"):
        raise InputError(
            "the chat template alters white space at the ends of a user's message; correct `chat_template` in the "
            "model's folder, or remove it to prompt without one"
        )
    gap = None
    with suppress(Exception):  # a template for single questions need not take answers
        answered = _render(tokenizer, _MESSAGE, system, as_list, answer=MARK)
        rest = answered.removeprefix(frame.before + _MESSAGE + frame.after)
        if rest != answered and MARK in rest and not rest[: rest.index(MARK)].strip():
            gap = rest[: rest.index(MARK)]
    return Frame(frame.before, frame.after, strips_left, strips_right, gap)


def _render(tokenizer: Any, message: str, system: bool, as_list: bool, answer: str | None = None) -> str:
    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if as_list else text

    messages = [{"role": "system", "content": content(_SYSTEM)}] if system else []
    messages.append({"role": "user", "content": content(message)})
    if answer is not None:
        messages.append({"role": "assistant", "content": content(answer)})
    rendered: str = tokenizer.apply_chat_template(
        messages,
        chat_template=_FIXED_DAY + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=answer is None,
    )
    return rendered


def frame_texts(tokenizer: Any) -> tuple[str, str]:
    """Texts that a chat template puts before and after a user's message; empty without a template."""
    frame = chat_frame(tokenizer)
    return frame.before, frame.after
