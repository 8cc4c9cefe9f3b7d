"""Prompts made of parts have the tokens of their whole text, whatever the tokenizer; data yields no control token."""

import numpy as np
import pandas as pd
import pytest
from tokenizer_families import CONTROL, FAMILIES, TITLES, save_sentencepiece, sentencepiece_like
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rarec.data.templates import TEMPLATES
from rarec.errors import InputError
from rarec.rella.language_model import find_answers
from rarec.text.prompts import PromptParts, build_parts
from rarec.text.reader import PromptReader, control_tokens, first_tokens
from rarec.text.tokens import PromptTokens

RATINGS = np.array([1.0, 3.5, 4.0])
WORDINGS = {
    "usual": TEMPLATES["movies"],
    "one line": TEMPLATES["movies"].model_copy(
        update={"heading": "Seen: ", "behaviour": "{item} ({rating}), ", "question": "and {item}: ",
                "profile_line": "{}. "}
    ),
    "blanks at the ends": TEMPLATES["movies"].model_copy(
        update={"profile_line": " {}\n", "heading": "\n\nSeen:  \n", "behaviour": "{item}: {rating}  \n",
                "question": "\n{item}?\n\n"}
    ),
    "no heading": TEMPLATES["movies"].model_copy(update={"heading": "", "profile_line": "{}\n"}),
}  # fmt: skip


def films(titles, template):
    items = pd.DataFrame(
        {"item_id": np.arange(len(titles)), "title": titles, "genres": None, "category": None, "author": None,
         "publisher": None, "year": pd.array([None] * len(titles), dtype="Int64")}
    )  # fmt: skip
    users = pd.DataFrame(
        {"gender": ["F", None, "</s> m"], "age_group": None, "age": [None] * 3, "occupation": [None, None, "chef"],
         "location": None, "zip_code": None}
    )  # fmt: skip
    pairs = np.arange(len(titles) * len(RATINGS))
    return build_parts(template, items, users, pairs // len(RATINGS), RATINGS[pairs % len(RATINGS)])


def random_rows(parts: PromptParts, seed: int, users: int, count: int = 60, k: int = 5):
    rng = np.random.default_rng(seed)
    lines = rng.integers(parts.lines, parts.questions, (count, k))
    lines[np.arange(k) < rng.integers(0, k + 1, count)[:, None]] = -1  # shorter histories
    heading = np.full(count, parts.lines - 1)
    questions = rng.integers(parts.questions, len(parts.texts), count)
    return np.column_stack([rng.integers(0, users, count), heading, lines, questions])


def whole(tokenizer, text: str) -> list[int]:
    """The slow, obvious way: the text with its frame, tokenised at once."""
    if not tokenizer.chat_template:
        tokens = tokenizer(text)["input_ids"]
        return tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("wording", WORDINGS)
def test_parts_have_the_tokens_of_the_whole_text(family, wording):
    parts = films(TITLES, WORDINGS[wording])
    rows = random_rows(parts, seed=1, users=2)  # the third user's profile spells a control token
    made = PromptTokens.of(parts, family, limit=5000).prompts(rows)
    for row, got in zip(rows, made.rows(), strict=True):
        assert got.tolist() == whole(family, parts.text(row)), repr(parts.text(row))
    assert not made.dropped.any()


@pytest.mark.parametrize("name", FAMILIES)
def test_usual_lines_are_copied_and_not_tokenised_again(name):
    parts = films([title for title in TITLES if title[0].isalnum()], TEMPLATES["movies"])
    prompts = PromptTokens.of(parts, FAMILIES[name](), limit=5000)
    assert (prompts.whole is not None) == (name in ("llama that joins lines", "flattens lines"))


@pytest.mark.parametrize("wording", WORDINGS)
def test_no_control_token_comes_from_data(family, wording):
    parts = films([*CONTROL, *(f"{title} {word}" for title in TITLES for word in CONTROL)], WORDINGS[wording])
    rows = random_rows(parts, seed=2, users=3)
    made = PromptTokens.of(parts, family, limit=5000).prompts(rows)
    spelled = {number for number, token in control_tokens(family).items() if not token.content.startswith("<0x")}
    spelled -= {family.unk_token_id}
    empty = [token for token in whole(family, "x") if token in spelled]
    for row, got in zip(rows, made.rows(), strict=True):
        assert [token for token in got.tolist() if token in spelled] == empty
        if wording == "usual" and not family.chat_template:
            text = family.decode(got[len(first_tokens(family)) :], clean_up_tokenization_spaces=False)
            assert text.split() == parts.text(row).split()


@pytest.mark.parametrize("wording", WORDINGS)
def test_control_text_is_read_alike_apart_and_together(family, wording):
    parts = films(CONTROL, WORDINGS[wording])
    rows = random_rows(parts, seed=3, users=3)
    prompts = PromptTokens.of(parts, family, limit=5000)
    reader = PromptReader(family)
    whole = reader.messages([parts.text(row) for row in rows]).rows()
    for got, body in zip(prompts.prompts(rows).rows(), whole, strict=True):
        assert got.tolist() == [*reader.before, *body, *reader.after]


def test_prompts_that_are_tokenised_whole_keep_to_the_limit(family):
    for wording in ("usual", "one line"):
        parts = films(TITLES, WORDINGS[wording])
        rows = random_rows(parts, seed=4, users=2)
        free = PromptTokens.of(parts, family, limit=5000).prompts(rows)
        limit = int(np.median(free.lengths))
        made = PromptTokens.of(parts, family, limit=limit).prompts(rows)
        assert made.lengths.max() <= limit
        assert np.array_equal(made.dropped == 0, free.lengths <= limit)
        for row, got, dropped in zip(rows, made.rows(), made.dropped, strict=True):
            shorter = row.copy()
            (history,) = np.nonzero(row[2:-1] >= 0)
            shorter[2 + history[:dropped]] = -1
            assert got.tolist() == whole(family, parts.text(shorter))
            if dropped:
                shorter[2 + history[dropped - 1]] = row[2 + history[dropped - 1]]
                assert len(whole(family, parts.text(shorter))) > limit
        with pytest.raises(InputError, match="without any behaviour, more than the limit of 9"):
            PromptTokens.of(parts, family, limit=9).prompts(rows)


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("llama", "▁Yes", "▁No"), ("llama without chat", "▁Yes", "▁No"), ("mistral", "▁Yes", "▁No"),
        ("qwen", "Yes", "No"), ("gpt2", "ĠYes", "ĠNo"), ("zephyr", "Yes", "No"), ("gemma", "Yes", "No"),
    ],
)  # fmt: skip
def test_answers_are_read_in_their_place(name, yes, no):
    """Behind a line end without a blank, behind [/INST] and a colon with one."""
    tokenizer = FAMILIES[name]()
    blank = "Ġ" if name in ("qwen", "gpt2") else "▁"
    for form in ("Yes", "No", f"{blank}Yes", f"{blank}No"):  # so that the wrong ones could be taken
        assert tokenizer.convert_tokens_to_ids(form) not in (None, tokenizer.unk_token_id)
    answers = find_answers(tokenizer, "Yes", "No")
    assert tokenizer.convert_ids_to_tokens(answers.tokens) == [no, yes]


def test_a_first_token_is_found_where_one_ends_texts_too():
    assert first_tokens(FAMILIES["ends texts"]()).tolist() == [1]
    assert first_tokens(FAMILIES["gpt2"]()).tolist() == []


def test_a_vocabulary_that_holds_control_tokens_yields_none():
    """As of tokenizers whose model itself knows them: the text gets a blank inside."""
    raw = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((char, -5.0) for char in "<>/sab: \n")], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    assert tokenizer("a</s>b", split_special_tokens=True)["input_ids"].count(1) == 1
    table = PromptReader(tokenizer).lines(["a: b\n", "a</s>b\n"])
    assert tokenizer.convert_ids_to_tokens(table.rows()[1]) == list("a< /s>b\n")
    assert tokenizer.convert_ids_to_tokens(table.rows()[0]) == list("a: b\n")


def test_names_and_white_space_are_text_and_markup_is_not():
    tokenizer = sentencepiece_like("first")
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False) for name in ("Heat", "[REC]", "\n\n", "<think>", "[TOOL]")]
    )
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    text = {token.content for token in control_tokens(tokenizer).values()} - special
    assert text == {"<think>"}
    tokenizer.chat_template = "{% for m in messages %}[TOOL]{{ m.content }}{% endfor %}"
    text = {token.content for token in control_tokens(tokenizer).values()} - special
    assert text == {"<think>", "[TOOL]"}


def test_the_tokenizer_is_not_changed(family):
    before = family.backend_tokenizer.to_str(), family("a</s>")["input_ids"]
    PromptReader(family).messages(["a</s>"])
    assert (family.backend_tokenizer.to_str(), family("a</s>")["input_ids"]) == before


def test_a_sentencepiece_tokenizer_reads_as_sentencepiece_does(tmp_path):
    import sentencepiece

    save_sentencepiece(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    parts = films(TITLES, TEMPLATES["movies"])
    rows = random_rows(parts, seed=5, users=2)
    for row, got in zip(rows, PromptTokens.of(parts, tokenizer, limit=5000).prompts(rows).rows(), strict=True):
        assert got.tolist() == [original.bos_id(), *original.encode(parts.text(row))]


def test_descriptions_are_texts_of_their_own(family):
    texts = ["Heat: drama", " lead", "日本"]
    for text, got in zip(texts, PromptReader(family).documents(texts).rows(), strict=True):
        assert got.tolist() == family(text, add_special_tokens=False)["input_ids"]
