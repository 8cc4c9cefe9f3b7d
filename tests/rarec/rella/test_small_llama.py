import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rella_toys import CPU
from safetensors.torch import load_file
from small_llama_toys import CATALOGUE, LENGTHS, OFFSETS, USERS, small_llama_data

from rarec.data.ctr import CtrSamples
from rarec.data.templates import TEMPLATES
from rarec.rella.language_model import LanguageModelSettings, find_answers, load_model, load_tokenizer
from rarec.rella.small_llama import CARD, train_small_llama, train_tokenizer, training_positions
from rarec.rella.small_llama_training import HistoryPieces, _choose
from rarec.text.prompts import NO_PART
from rarec.text.tokens import PromptTokens, TokenTable


@pytest.fixture(scope="module")
def data():
    return small_llama_data()


def test_nothing_at_or_after_the_first_validation_sample_is_read(data):
    *_, times, samples = data
    allowed = training_positions(samples, times, has_clock=True)
    first = times[samples.position[samples.rows("valid")]].min()
    assert np.array_equal(allowed, np.flatnonzero(times < first))
    held_out = np.concatenate([samples.position[samples.rows(split)] for split in ("valid", "test")])
    assert not set(allowed.tolist()) & set(held_out.tolist())
    assert 0 < len(allowed) < len(times)


def test_without_a_clock_only_training_users_are_read():
    samples = CtrSamples(np.array([0, 3, 5, 9]), np.array([8, 2, 4]), np.ones(3, bool), np.array([0, 1, 2, 3]))
    assert training_positions(samples, np.zeros(9), has_clock=False).tolist() == [5, 6, 7, 8]


def test_pieces_hold_every_allowed_behaviour_once_in_order(data):
    parts, *_ = data
    allowed = np.flatnonzero(np.arange(LENGTHS.sum()) % 5 != 4)
    pieces = HistoryPieces(parts, OFFSETS, allowed, behaviours=4)
    generator = np.random.default_rng(1)
    cuts = []
    for _ in range(2):
        rows = pieces.of_epoch(generator)
        assert (rows[:, 1] == parts.lines - 1).all()
        assert (rows[:, -1] == NO_PART).all()
        assert ((rows[:, 2:-1] != NO_PART).sum(1) >= 1).all()
        read = {user: [] for user in range(USERS)}
        for row in rows:
            lines = row[2:-1]
            assert (np.diff((lines != NO_PART).astype(int)) >= 0).all()  # filled from the end
            read[row[0] - parts.profiles] += lines[lines != NO_PART].tolist()
        for user in range(USERS):
            own = allowed[(allowed >= OFFSETS[user]) & (allowed < OFFSETS[user + 1])]
            assert read[user] == (parts.lines + parts.line_of[own]).tolist()
        cuts.append(rows.shape[0])
        last = rows
    assert not np.array_equal(last, HistoryPieces(parts, OFFSETS, allowed, 4).of_epoch(np.random.default_rng(1)))


def test_the_tokenizer_writes_any_text():
    tokenizer = train_tokenizer(["Heat (1995): 4\n", "Heat (1995): 5\n"], 300)
    text = "Séance 映画: 3\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id


def test_names_and_answers_are_tokens_of_their_own():
    tokenizer = train_tokenizer(["Heat (1995): 4\n", "Up: 5\n"] * 3, 600, ["Heat (1995)", "Up"], ["Yes", "No"])
    text = "Heat (1995): 4\nUp:"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[1:3] == ["Heat (1995)", ":"]
    assert len(tokenizer(text + " Yes", add_special_tokens=False)["input_ids"]) == 6
    assert find_answers(tokenizer, "Yes", "No").tokens == tokenizer.convert_tokens_to_ids([" No", " Yes"])


def test_a_small_llama_learns_what_is_liked_and_comes_back(data, tmp_path):
    parts, item, _, times, _ = data
    allowed = np.arange(len(times))
    settings = LanguageModelSettings(
        vocabulary=400, dim=32, layers=2, heads=2, behaviours=6, epochs=25, batch_tokens=128, max_tokens=512,
        learning_rate=5e-3,
    )  # fmt: skip
    reports = []
    card = train_small_llama(
        parts, CATALOGUE, item, OFFSETS, allowed, ("Yes", "No"), settings, tmp_path,
        tmp_path / "checkpoint", lambda **values: reports.append(values),
    )  # fmt: skip
    assert card["loss_by_epoch"][-1] < 0.3 * card["loss_by_epoch"][0]
    assert json.loads((tmp_path / CARD).read_text())["what"].endswith("not a general language model")
    assert reports[-1]["epoch"] == reports[-1]["epochs"] == 25
    assert reports[0]["tokens_per_s"] > 0  # not samples
    tokenizer, model = load_tokenizer(tmp_path), load_model(tmp_path, CPU)
    five, one = (tokenizer(rating, add_special_tokens=False)["input_ids"][0] for rating in (" 5\n", " 1\n"))
    for film, liked in (("b", True), ("g", False)):
        ids = tokenizer(TEMPLATES["movies"].heading + f"Film {film}:", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        assert (logits[five] > logits[one]) == liked


def test_the_seed_decides(data, tmp_path):
    parts, item, _, times, _ = data
    small = {"vocabulary": 300, "dim": 16, "layers": 1, "heads": 2, "epochs": 1, "batch_tokens": 1024}
    losses = []
    for seed in (1, 1, 2):
        settings = LanguageModelSettings(**small, seed=seed)
        card = train_small_llama(
            parts, CATALOGUE, item, OFFSETS, np.arange(len(times)), ("Yes", "No"), settings, tmp_path,
            tmp_path / str(len(losses)), lambda **_: None,
        )  # fmt: skip
        losses.append(card["loss_by_epoch"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("ratings", [True, False])
def test_without_ratings_no_opinion_is_read(data, tmp_path, ratings):
    parts, item, _, times, _ = data
    other = replace(parts, texts=[text.replace(": 1\n", ": 2\n") for text in parts.texts])
    assert other.texts != parts.texts
    settings = LanguageModelSettings(
        vocabulary=300, dim=16, layers=1, heads=2, epochs=1, batch_tokens=1024, ratings=ratings
    )
    weights = []
    for name, own in (("given", parts), ("other", other)):
        (tmp_path / name).mkdir()
        card = train_small_llama(
            own, CATALOGUE, item, OFFSETS, np.arange(len(times)), ("Yes", "No"), settings, tmp_path / name,
            tmp_path / f"{name} checkpoint", lambda **_: None,
        )  # fmt: skip
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        assert card["read"].endswith("each with its rating" if ratings else "without ratings")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]) is not ratings


def test_of_much_text_each_epoch_reads_another_part(data, tmp_path):
    parts, item, _, times, _ = data
    cards, losses, shares = [], [], []
    for tokens in (10**6, 900):
        settings = LanguageModelSettings(
            vocabulary=300, dim=16, layers=1, heads=2, epochs=3, tokens=tokens, max_tokens=300, learning_rate=1e-9
        )
        card = train_small_llama(
            parts, CATALOGUE, item, OFFSETS, np.arange(len(times)), ("Yes", "No"), settings, tmp_path,
            tmp_path / str(len(losses)), lambda **_: None,
        )  # fmt: skip
        cards.append(card["tokens_read"])
        losses.append(card["loss_by_epoch"])
        shares.append((card["share_of_descriptions_read"], card["share_of_histories_read"]))
        assert f"{shares[-1][1]:.2%} of those of {len(times)} training behaviours" in card["read"]
    assert cards[0] > 3000
    assert shares[0] == (1, 1)
    assert shares[1][0] == 1
    assert 0.1 < shares[1][1] < 0.4
    assert 600 < cards[1] <= 900
    spread = [np.ptp(loss) for loss in losses]
    assert spread[1] > 3 * spread[0]  # nothing is learned here: only what is read differs


@pytest.mark.parametrize(
    ("most", "histories", "descriptions"),
    [(100, 10, 20), (99, 9, 20), (40, 2, 20), (30, 1, 15), (12, 0, 6)],
    ids=["all", "one history less", "descriptions whole", "half for each", "hardly any"],
)
def test_descriptions_are_whole_while_histories_are_sampled(most, histories, descriptions):
    """Ten histories of eight tokens, 20 descriptions of one."""
    table = TokenTable(np.arange(0, 101, 1), np.zeros(100, np.int32))
    tokens = PromptTokens(table, np.zeros(0, np.int32), np.zeros(0, np.int32), limit=50)
    rows = np.arange(80).reshape(10, 8)
    described = np.full((20, 8), NO_PART)
    described[:, -1] = np.arange(80, 100)
    read = _choose(rows, described, tokens, most, np.random.default_rng(0))
    assert [len(part) for part in read] == [histories, descriptions]
