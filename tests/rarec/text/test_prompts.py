import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rarec.data.templates import TEMPLATES, Piece, Template, find_template, item_texts, profile_texts
from rarec.errors import InputError
from rarec.retrieval.subr import recent_behaviours
from rarec.text.prompts import PromptParts, build_parts
from rarec.text.tokens import PromptTokens, by_length, frame_texts, tokenise

ITEMS = pd.DataFrame(
    {
        "item_id": [3, 8, 9],
        "title": ["Heat", "Café {Lumière}", "item 9"],
        "genres": ["Action|Crime", "Drama", None],
        "category": [None] * 3,
        "author": [None, "A. B.", None],
        "publisher": [None] * 3,
        "year": pd.array([1995, 2003, None], dtype="Int64"),
    }
)
USERS = pd.DataFrame(
    {
        "gender": ["F", None, None],
        "age_group": ["25-34", None, None],
        "age": pd.array([25, None, 40], dtype="Int64"),
        "occupation": ["writer", None, None],
        "location": [None] * 3,
        "zip_code": [None] * 3,
    }
)
# Users 0 and 2; five and two interactions.
ITEM_INDEX = np.array([0, 1, 2, 1, 0, 2, 1])
RATING = np.array([4.0, 3.5, 1.0, 3.5, 5.0, 2.0, 4.0])
OFFSETS = np.array([0, 5, 5, 7])


@pytest.fixture(scope="module")
def parts():
    return build_parts(TEMPLATES["movies"], ITEMS, USERS, ITEM_INDEX, RATING)


def train_tokenizer(texts, vocabulary=300, **special):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


@pytest.fixture(scope="module")
def tokenizer(parts):
    return train_tokenizer(parts.texts, 400)


def numbers(parts, position, k):
    users = np.searchsorted(OFFSETS, position, side="right") - 1
    return parts.of(users, ITEM_INDEX[position], position, recent_behaviours(OFFSETS, position, k))


def test_a_prompt_by_hand(parts):
    (row,) = numbers(parts, np.array([4]), 3)
    assert parts.text(row) == (
        "A viewer: gender F, age 25-34, writer.\n"
        "Films they have rated, from the oldest to the latest:\n"
        "Café {Lumière} (2003): 3.5\n"
        "item 9: 1\n"
        "Café {Lumière} (2003): 3.5\n"
        "Will they like the next film? Yes or No.\n"
        "Heat (1995):"
    )


def test_a_short_history_and_a_profile_of_one_value(parts):
    (row,) = numbers(parts, np.array([6]), 3)
    text = parts.text(row)
    assert text.startswith(
        "A viewer: 40 years old.\nFilms they have rated, from the oldest to the latest:\nitem 9: 2\nWill"
    )


def test_nothing_known_of_a_user_leaves_the_profile_out():
    assert profile_texts(USERS, TEMPLATES["movies"]) == [
        "A viewer: gender F, age 25-34, writer.\n",
        "",
        "A viewer: 40 years old.\n",
    ]


def test_descriptions_of_books_name_isbn_and_author():
    texts = item_texts(ITEMS, TEMPLATES["books"].description)
    assert texts[1] == "Café {Lumière} by A. B.: ISBN 8, 2003"


def test_an_item_without_text_is_named():
    items = ITEMS.assign(title=["Heat", None, "item 9"])
    with pytest.raises(InputError, match=r"1 items have no text \(first: item_id 8\): title are all missing"):
        item_texts(items, (Piece(column="title"),))


def test_save_and_load(parts, tmp_path):
    parts.save(tmp_path)
    back = PromptParts.load(tmp_path)
    assert back.texts == parts.texts
    assert np.array_equal(numbers(back, np.arange(7), 4), numbers(parts, np.arange(7), 4))


def test_templates_refuse_contradictions():
    assert find_template("books") is TEMPLATES["books"]
    with pytest.raises(InputError, match=r"no prompt template for the domain 'songs'.*\[template\]"):
        find_template("songs")
    own = TEMPLATES["movies"].model_dump()
    assert find_template("songs", Template(**own)) == TEMPLATES["movies"]
    with pytest.raises(ValidationError, match=r"`question` must contain \{item\} once"):
        Template(**{**own, "question": "Like it?"})
    with pytest.raises(
        ValidationError, match=r"`behaviour` must contain \{item\} and \{rating\} once, and nothing else"
    ):
        Template(**{**own, "behaviour": "{item}\n"})
    with pytest.raises(ValidationError, match="`behaviour` must contain"):
        Template(**{**own, "behaviour": "{item}: {rating} {stars}\n"})
    with pytest.raises(ValidationError, match=r"`question` = 'Like {item'"):
        Template(**{**own, "question": "Like {item"})
    with pytest.raises(ValidationError, match="`yes` and `no` are the same word, 'Yes'"):
        Template(**{**own, "no": "Yes"})
    with pytest.raises(ValidationError, match="names an unknown column 'colour'"):
        Template(**{**own, "item": [{"column": "title", "unless": "colour"}]})
    with pytest.raises(ValidationError, match="names an unknown column 'colour'"):
        Template(**{**own, "item": [{"column": "colour"}]})
    with pytest.raises(ValidationError, match="once, for the value"):
        Piece(column="title", text="no place")


@pytest.mark.parametrize("first", [{}, {"bos_token": "<s>"}])
def test_tokens_spell_the_text(parts, first):
    tokenizer = train_tokenizer(parts.texts, 400, **first)
    if first:
        from tokenizers.processors import TemplateProcessing

        number = tokenizer.convert_tokens_to_ids("<s>")
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", number)]
        )
    made = PromptTokens.of(parts, tokenizer, limit=1000)
    rows = numbers(parts, np.arange(7), 4)
    prompts = made.prompts(rows)
    ends = prompts.lengths.cumsum()
    for row, start, end in zip(rows, ends - prompts.lengths, ends, strict=True):
        text = parts.text(row)
        tokens = prompts.tokens[start:end].tolist()
        assert tokenizer.decode(tokens) == ("<s>" if first else "") + text
        assert tokens == tokenizer(text)["input_ids"]  # parts end where this tokenizer splits
    assert not prompts.dropped.any()


def test_a_chat_template_is_put_around_the_prompt(parts):
    tokenizer = train_tokenizer(parts.texts, 400)
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}] {{ message.content }} [/]{% endfor %}"
        "{% if add_generation_prompt %}[answer] {% endif %}"
    )
    rows = numbers(parts, np.array([4]), 2)
    prompts = PromptTokens.of(parts, tokenizer, limit=1000).prompts(rows)
    assert tokenizer.decode(prompts.tokens) == f"[user] {parts.text(rows[0])} [/][answer] "


@pytest.mark.parametrize(
    ("form", "day"), [("%d %b %Y", "01 Jul 2024"), ("%Y-%m-%d", "2024-07-01"), ("%B %d, %Y", "July 01, 2024")]
)
def test_a_chat_template_that_prints_the_date_prints_the_same_one_always(form, day, parts):
    tokenizer = train_tokenizer(parts.texts, 400)
    tokenizer.chat_template = (
        f"{{% if date_string is not defined %}}{{% set date_string = strftime_now('{form}') %}}{{% endif %}}"
        f"{{% macro year() %}}{{{{ strftime_now('%Y') }}}}{{% endmacro %}}"
        "Today Date: {{ date_string }}, {{ year() }}\n{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    assert frame_texts(tokenizer) == (f"Today Date: {day}, 2024\n", "")


def test_twin_prompts_differ_in_the_history_only(parts, tokenizer):
    made = PromptTokens.of(parts, tokenizer, limit=1000)
    recent = numbers(parts, np.array([4]), 2)
    users = np.array([0])
    twin = parts.of(users, ITEM_INDEX[[4]], np.array([4]), np.array([[4, 2]], dtype=np.uint16))
    assert recent[0, :2].tolist() == twin[0, :2].tolist()
    assert recent[0, -1] == twin[0, -1]
    one, other = (made.prompts(row).tokens.tolist() for row in (recent, twin))
    assert one != other
    question = made.table.lengths[recent[0, -1]]
    assert one[-question:] == other[-question:]


def test_over_the_limit_the_oldest_behaviours_go_and_are_counted(parts, tokenizer):
    rows = numbers(parts, np.array([4, 1]), 4)
    whole = PromptTokens.of(parts, tokenizer, limit=1000).prompts(rows)
    assert whole.lengths[0] > whole.lengths[1]
    limit = int(whole.lengths[0]) - 1
    cut = PromptTokens.of(parts, tokenizer, limit=limit).prompts(rows)
    assert cut.dropped.tolist() == [1, 0]
    assert cut.lengths[0] <= limit
    without_oldest = rows[0].copy()
    without_oldest[2] = -1
    assert tokenizer.decode(cut.tokens[: cut.lengths[0]]) == parts.text(without_oldest)
    fixed = numbers(parts, np.array([0]), 4)  # no history at all
    smallest = int(PromptTokens.of(parts, tokenizer, limit=1000).prompts(fixed).lengths[0])
    alone = PromptTokens.of(parts, tokenizer, limit=smallest).prompts(numbers(parts, np.array([4]), 4))
    assert alone.dropped.tolist() == [4]
    with pytest.raises(InputError, match=r"without any behaviour, more than the limit of \d+; shorten the template"):
        PromptTokens.of(parts, tokenizer, limit=smallest - 1).prompts(fixed)


def test_tokenise_handles_nothing_and_unicode(tokenizer):
    table = tokenise(tokenizer, ["", "Séance\n", ""])
    assert table.lengths[0] == table.lengths[2] == 0
    assert tokenizer.decode(table.tokens) == "Séance\n"


def test_batches_by_length_hold_everything_once_and_respect_the_bound():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    batches = list(by_length(lengths, 256))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for rows in batches:
        assert lengths[rows].max() * len(rows) <= 256
        assert lengths[rows].min() >= 0.875 * lengths[rows].max()
    assert [len(rows) for rows in by_length(np.array([500, 3]), 256)] == [1, 1]
    few = np.array([14, 16, 13, 16])
    assert [rows.tolist() for rows in by_length(few, 256)] == [[3, 1, 0], [2]]
    assert [rows.tolist() for rows in by_length(few, 256, least=0)] == [[3, 1, 0, 2]]
