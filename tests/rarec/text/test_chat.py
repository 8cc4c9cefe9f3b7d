"""Chat templates as they are published: what is around a message, and which of them are refused."""

import pytest
from tokenizer_families import CHATML, GEMMA_CHAT, LLAMA_CHAT, MISTRAL_CHAT, ZEPHYR_CHAT, sentencepiece_like

from rarec.errors import InputError
from rarec.text.chat import Frame, chat_frame, frame_texts

EACH = "{% for m in messages %}"
END = "{% endfor %}"
PLAIN = EACH + "{{ m['content'] }}" + END


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece_like("first")


def framed(tokenizer, template: str) -> Frame:
    tokenizer.chat_template = template
    return chat_frame(tokenizer)


@pytest.mark.parametrize(
    ("template", "before", "after", "strips", "gap"),
    [
        (LLAMA_CHAT, "<s>[INST] ", " [/INST]", False, " "),
        (MISTRAL_CHAT, "<s>[INST] ", "[/INST]", False, " "),
        (ZEPHYR_CHAT, "<|user|>\n", "</s>\n<|assistant|>\n", False, ""),
        (
            CHATML,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            False,
            "",
        ),
        (GEMMA_CHAT, "<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", True, None),
        (f"{EACH}{{{{ m['content'].lstrip() }}}}{END}", "", "", None, ""),
        (f"{EACH}{{% for c in m['content'] %}}[{{{{ c['text'] }}}}]{{% endfor %}}{END}", "[", "]", False, None),
        (
            "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
            "S: {{ messages[0]['content'] }} U: {{ messages[1]['content'] }}",
            "S: You are a helpful assistant. U: ",
            "",
            False,
            None,
        ),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}<{{ messages[0].content }}>",
            "<",
            ">",
            False,
            None,
        ),
    ],
)
def test_the_frame_is_what_the_template_writes(tokenizer, template, before, after, strips, gap):
    frame = framed(tokenizer, template)
    assert (frame.before, frame.after, frame.gap) == (before, after, gap)
    assert (frame.strips_left, frame.strips_right) == ((True, False) if strips is None else (strips, strips))


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ raise_exception('roles must alternate') }}", r"it fails \(TemplateError: roles must alternate\)"),
        (EACH + "{{ m.content }" + END, r"it fails \(TemplateSyntaxError: "),
        (EACH + "{{ m['content'] }}|{{ m['content'] }}" + END, "it writes it 2 times"),
        ("{{ 'hello' }}", "it does not write it at all"),
        (EACH + "{{ m['content'] | tojson }}" + END, "it alters it"),
        (EACH + "{{ m['content'] | replace('  ', ' ') }}" + END, "it alters it"),
        (EACH + "{{ m['content'] | e }}" + END, "it alters it"),
        (EACH + "{{ m['content'][:12] }}" + END, "it alters it"),
        (EACH + "{{ 1 / 0 }}{{ m['content'] }}" + END, r"it fails \(ZeroDivisionError: "),
        (EACH + "{{ m['text'] + m['content'] }}" + END, r"it fails \(UndefinedError: "),
        ("{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}", "system first"),
    ],
)
def test_a_template_that_does_not_write_a_message_once_is_refused(tokenizer, template, fault):
    with pytest.raises(InputError, match=f"the chat template does not write .* once and unchanged: .*{fault}") as told:
        framed(tokenizer, template)
    assert "remove it to prompt without one" in str(told.value)


def test_a_template_that_alters_white_space_at_the_ends_is_refused(tokenizer):
    with pytest.raises(InputError, match="alters white space at the ends of a user's message"):
        framed(tokenizer, EACH + "{{ m['content'].strip(' ') }}" + END)


def test_without_a_template_there_is_no_frame(tokenizer):
    tokenizer.chat_template = None
    assert chat_frame(tokenizer) == Frame()
    assert frame_texts(tokenizer) == ("", "")


def test_white_space_is_stripped_where_the_template_strips_it():
    text = " \n a \n "
    assert Frame().strip(text) == text
    assert Frame(strips_left=True).strip(text) == "a \n "
    assert Frame(strips_right=True).strip(text) == " \n a"
    assert Frame(strips_left=True, strips_right=True).strip(text) == "a"
