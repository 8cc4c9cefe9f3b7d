"""Every kind of language model goes the same way: vectors, an adapter, probabilities."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from rella_toys import BASE, CPU, KINDS, LIMIT, TEMPLATE, slow_probability, toy_data

from rarec.data.templates import item_texts
from rarec.errors import InputError
from rarec.rella import scoring
from rarec.rella.scoring import score
from rarec.rella.training_samples import draw_training_samples
from rarec.rella.tuning import TuningObjective, TuningSettings, add_adapter, load_adapter, tune
from rarec.rella.vectors import check_vectors, describe, reduce

DATA = toy_data()
LAYERS = 2


def plain_name(name):
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_from_vectors_to_a_tuned_adapter(kind, tmp_path, monkeypatch):
    texts = item_texts(DATA.items, TEMPLATE.description)
    states = describe(DATA.model(kind), DATA.tokenizer, texts, CPU, LIMIT)[0]
    assert states.shape == (len(texts), 16)
    assert np.isfinite(states).all()
    assert check_vectors(reduce(states)[0])[0]

    base = DATA.model(kind)
    before = {name: value.detach().clone() for name, value in base.named_parameters()}
    targets = ("c_attn",) if kind == "gpt2" else ("q_proj", "v_proj")
    settings = TuningSettings(targets=targets, epochs=2, batch_size=16, learning_rate=0.02, dropout=0.2)
    model = add_adapter(base, settings, seed=5)
    fresh = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    assert len(fresh) == 2 * LAYERS * len(targets)
    shots = draw_training_samples(DATA.source.samples, 20, "mixed", 5)
    objective = TuningObjective(model, DATA.source, DATA.prompts, shots, DATA.answers, settings, 5, CPU)
    output = tmp_path / "adapter"
    output.mkdir()
    summary = tune(objective, BASE, output, tmp_path / "checkpoint", lambda **_: None)
    assert len(summary["history"]) == 2
    assert all(np.isfinite(record["loss"]) for record in summary["history"])

    after = {plain_name(name): value for name, value in model.named_parameters() if "lora_" not in name}
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    for name, value in model.named_parameters():
        if "lora_" in name:
            assert not torch.equal(value, fresh[name]), name

    rows = DATA.source.rows(np.arange(0, len(DATA.source.samples), 8), True)
    tuned, untuned = (score(one, DATA.prompts, rows, DATA.answers, CPU)[0] for one in (model, DATA.model(kind)))
    assert np.abs(tuned - untuned).max() > 1e-3
    by_peft = PeftModel.from_pretrained(DATA.model(kind), output).eval()
    ours = load_adapter(DATA.model(kind), output, BASE)
    for again in (by_peft, ours):
        np.testing.assert_array_equal(score(again, DATA.prompts, rows, DATA.answers, CPU)[0], tuned)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "MANY", 1)  # our own decoder, with the adapter's weights added
        np.testing.assert_allclose(score(ours, DATA.prompts, rows, DATA.answers, CPU)[0], tuned, atol=1e-5)
    slow = [slow_probability(by_peft, DATA.tokenizer, DATA.source.parts.text(row)) for row in rows]
    np.testing.assert_allclose(score(ours.train(), DATA.prompts, rows, DATA.answers, CPU, 200)[0], slow, atol=2e-6)
    merged = ours.merge_and_unload()
    np.testing.assert_allclose(score(merged, DATA.prompts, rows, DATA.answers, CPU)[0], tuned, atol=1e-5)

    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    with pytest.raises(InputError, match=f"was tuned on language model {BASE} and cannot serve another"):
        load_adapter(DATA.model(kind), output, "another")
