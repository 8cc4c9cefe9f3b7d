from dataclasses import replace

import numpy as np
import pytest
import torch
from callers_data import unchanged
from rella_toys import BASE, BEHAVIOURS, CPU, LIMIT, TEMPLATE, slow_probability, toy_data

from rarec.errors import InputError
from rarec.rella.online import OnlineModel
from rarec.rella.scoring import score
from rarec.rella.tuning import TUNING, TuningSettings, add_adapter

DATA = toy_data()
SOURCE = DATA.source
ONLINE = OnlineModel(
    DATA.model(), DATA.tokenizer, DATA.items, DATA.users, DATA.vectors, TEMPLATE, BEHAVIOURS, LIMIT
)  # fmt: skip
SAMPLES = np.arange(len(SOURCE.samples))[::4]


def asked(samples):
    """Users, histories, ratings and targets of samples, as a caller would give them."""
    ids = DATA.items["item_id"].tolist()
    users, histories, ratings, targets = [], [], [], []
    for sample in samples:
        position, start = SOURCE.samples.position[sample], SOURCE.samples.history_start[sample]
        users.append(DATA.users["user_id"][SOURCE.samples.user[sample]])
        histories.append([ids[item] for item in SOURCE.items[start:position]])
        ratings.append(DATA.rating[start:position].tolist())
        targets.append(ids[SOURCE.items[position]])
    return users, histories, ratings, targets


def batch(samples, model=ONLINE.model):
    return score(model, DATA.prompts, SOURCE.rows(samples, True), DATA.answers, CPU)[0]


def test_single_questions_are_answered_as_samples_are():
    users, histories, ratings, targets = asked(SAMPLES)
    expected = batch(SAMPLES)
    assert np.std(expected) > 0.01
    assert max(map(len, histories)) > BEHAVIOURS > min(map(len, histories))
    with unchanged(DATA.vectors, ONLINE.model):
        got = ONLINE.predict(users, histories, ratings, targets)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    for n in range(len(SAMPLES)):  # and each by itself
        one = ONLINE.predict(users[n : n + 1], histories[n : n + 1], ratings[n : n + 1], targets[n : n + 1])
        assert one == pytest.approx(expected[n], abs=2e-6)
    as_text = ONLINE.predict(users, [[str(i) for i in h] for h in histories], ratings, [str(t) for t in targets])
    np.testing.assert_array_equal(as_text, got)


def test_unknown_items_of_a_history_are_passed_over():
    users, histories, ratings, targets = asked(SAMPLES)
    mixed = [["no such film", *history[:1], 999, *history[1:], 998] for history in histories]
    given = [[1.0, *own[:1], 2.0, *own[1:], 5.0] for own in ratings]
    np.testing.assert_allclose(ONLINE.predict(users, mixed, given, targets), batch(SAMPLES), atol=2e-6)
    nothing = ONLINE.predict(users[:2], [[], [999]], [[], [4.0]], [targets[0]] * 2)
    head = [DATA.source.parts.texts[DATA.source.parts.profiles + u] for u in SOURCE.samples.user[SAMPLES[:2]]]
    question = TEMPLATE.question.format(item=_name(targets[0]))
    slow = [slow_probability(ONLINE.model, DATA.tokenizer, h + TEMPLATE.heading + question) for h in head]
    np.testing.assert_allclose(nothing, slow, atol=2e-6)


def _name(item_id):
    from rarec.data.templates import item_texts

    return item_texts(DATA.items[DATA.items["item_id"] == item_id], TEMPLATE.item)[0]


def test_an_unknown_user_has_no_profile():
    users, histories, ratings, targets = asked(SAMPLES)
    strangers = ["stranger", *users[1:]]
    got = ONLINE.predict(strangers, histories, ratings, targets)
    expected = batch(SAMPLES)
    text = SOURCE.parts.text(SOURCE.rows(SAMPLES[:1], True)[0])
    assert text.startswith("A viewer: ")
    without = slow_probability(ONLINE.model, DATA.tokenizer, text.split("\n", 1)[1])
    assert got[0] == pytest.approx(without, abs=2e-6)
    assert abs(got[0] - expected[0]) > 1e-5
    np.testing.assert_allclose(got[1:], expected[1:], atol=2e-6)


def test_what_cannot_be_answered_is_said():
    users, histories, ratings, targets = asked(SAMPLES[:3])
    with pytest.raises(InputError, match="the target 'Nosferatu' is not in the catalogue"):
        ONLINE.predict(users, histories, ratings, [*targets[:2], "Nosferatu"])
    number = len(histories[1])
    with pytest.raises(InputError, match=rf"row 1 has {number} items in its history, but {number - 1} ratings"):
        ONLINE.predict(users, histories, [ratings[0], ratings[1][1:], ratings[2]], targets)


def test_it_comes_back_from_the_artifacts(tmp_path):
    folders = DATA.save(tmp_path, DATA.model())
    folders["adapter"] = tmp_path / "adapter"
    adapted = add_adapter(DATA.model(), TuningSettings(), 1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    adapted.save_pretrained(folders["adapter"], save_embedding_layers=False)
    (folders["adapter"] / TUNING).write_text(f'{{"base": "{BASE}"}}')
    back = OnlineModel.load(folders, BASE, TEMPLATE, BEHAVIOURS)
    expected = batch(SAMPLES, adapted)
    assert np.abs(expected - batch(SAMPLES)).max() > 1e-3  # the adapter is on
    np.testing.assert_allclose(back.predict(*asked(SAMPLES)), expected, atol=2e-6)
    fewer = replace(back, behaviours=1).predict(*asked(SAMPLES))
    assert np.abs(fewer - expected).max() > 1e-5
    with pytest.raises(InputError, match="cannot serve another"):
        OnlineModel.load(folders, "another", TEMPLATE, BEHAVIOURS)
