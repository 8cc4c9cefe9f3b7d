import numpy as np
import pytest
import torch
from callers_data import unchanged
from rella_toys import CPU, KINDS, OUT_OF_MEMORY, slow_probability, toy_data

from rarec.errors import InputError
from rarec.rella import scoring
from rarec.rella.decoder import CpuDecoder
from rarec.rella.scoring import score
from rarec.text.tokens import PromptTokens

DATA = toy_data()


@pytest.mark.parametrize("many", [1, 10**6], ids=["decoder", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_one_prompt_at_a_time(kind, many, monkeypatch):
    """Against the text of each prompt, alone, with the logits of every place; whatever the batches."""
    monkeypatch.setattr(scoring, "_CHUNK", 10)
    monkeypatch.setattr(scoring, "MANY", many)
    model = DATA.model(kind)
    rows = DATA.source.rows(np.arange(0, len(DATA.source.samples), 3), False)
    expected = [slow_probability(model, DATA.tokenizer, DATA.source.parts.text(row)) for row in rows]
    assert np.std(expected) > 0.01  # the prompts do differ
    for batch_tokens in (64, 300, 100_000):
        with unchanged(rows, model):
            got, dropped = score(model, DATA.prompts, rows, DATA.answers, CPU, batch_tokens)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
        assert not dropped.any()


def test_one_is_yes():
    """The output layer's row decides: with more of it for yes, the probability rises."""
    model = DATA.model()
    rows = DATA.source.rows(np.arange(5), True)
    before, _ = score(model, DATA.prompts, rows, DATA.answers, CPU)
    with torch.no_grad():
        model.lm_head.weight[DATA.answers.no] = 0
        model.lm_head.weight[DATA.answers.yes] = 0
    half, _ = score(model, DATA.prompts, rows, DATA.answers, CPU)
    assert (half == 0.5).all()
    assert (before != 0.5).all()
    states = model.model(input_ids=torch.tensor([DATA.tokenizer(DATA.source.parts.text(rows[0]))["input_ids"]]))
    with torch.no_grad():
        model.lm_head.weight[DATA.answers.yes] = states.last_hidden_state[0, -1]
    assert score(model, DATA.prompts, rows[:1], DATA.answers, CPU)[0] > 0.99


def test_the_mode_stays_and_behaviours_left_out_are_counted():
    model = DATA.model().train()
    samples = np.arange(len(DATA.source.samples))
    rows = DATA.source.rows(samples, False)
    limit = int(DATA.prompts.prompts(rows).lengths.max()) - 1
    reports = []
    short = PromptTokens.of(DATA.source.parts, DATA.tokenizer, limit)
    got, dropped = score(model, short, rows, DATA.answers, CPU, 1000, lambda **values: reports.append(values))
    assert model.training
    assert np.array_equal(dropped, short.prompts(rows).dropped)
    assert 0 < dropped.sum() < len(rows)
    assert reports[-1] == {"step": len(rows), "steps": len(rows), "unit": "prompt", "force": True}
    assert [report["step"] for report in reports] == sorted({report["step"] for report in reports})
    whole, _ = score(model.eval(), DATA.prompts, rows, DATA.answers, CPU)
    assert (np.abs(got - whole)[dropped > 0] > 1e-5).all()
    np.testing.assert_allclose(got[dropped == 0], whole[dropped == 0], atol=2e-6)


@pytest.mark.parametrize("full", OUT_OF_MEMORY)
def test_out_of_memory_says_what_to_lower(full, monkeypatch):
    monkeypatch.setattr(scoring, "last_logits", full)
    rows = DATA.source.rows(np.arange(8), False)
    lengths = DATA.prompts.prompts(rows).lengths
    batch = 2 * int(lengths.max())
    message = rf"out of memory with 2 prompts of up to {lengths.max()} tokens at once; lower batch_tokens below {batch}"
    with pytest.raises(InputError, match=message):
        score(DATA.model(), DATA.prompts, rows, DATA.answers, CPU, batch)
    monkeypatch.setattr(scoring, "cpu_decoder", full)
    monkeypatch.setattr(scoring, "MANY", 1)
    with pytest.raises(InputError, match="out of memory while preparing the language model's weights"):
        score(DATA.model(), DATA.prompts, rows, DATA.answers, CPU, batch)


def test_the_decoder_takes_small_batches_and_says_so(monkeypatch):
    """Whatever the setting allows: a limit that had no effect would be advice for nothing."""
    rows = DATA.source.rows(np.arange(8), False)
    monkeypatch.setattr(scoring, "MANY", 1)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 2 * int(DATA.prompts.prompts(rows).lengths.max()))
    monkeypatch.setattr(CpuDecoder, "answer_logits", OUT_OF_MEMORY[0])
    with pytest.raises(InputError, match=rf"lower batch_tokens below {scoring.BATCH_TOKENS}"):
        score(DATA.model(), DATA.prompts, rows, DATA.answers, CPU)
