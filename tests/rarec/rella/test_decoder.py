import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig
from rella_toys import CPU, LIMIT, toy_data
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rarec.rella import decoder
from rarec.rella.decoder import cpu_decoder
from rarec.rella.language_model import last_logits, pad
from rarec.rella.tuning import TuningSettings, add_adapter

DATA = toy_data()
ANSWERS = DATA.answers.tokens


def shape(**changes):
    return {
        "vocab_size": len(DATA.tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LIMIT, "initializer_range": 0.2,
        **changes,
    }  # fmt: skip


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape(**changes))).eval()


def batch():
    rows = np.arange(9)
    made = DATA.prompts.prompts(DATA.source.rows(rows * 5, True))
    return pad(made.tokens, made.lengths, rows, CPU)


def logits_of(model):
    return cpu_decoder(model, ANSWERS, LIMIT).answer_logits(batch())


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 6},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": SCALED},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_equal_those_of_transformers(changes):
    model = llama(**changes)
    for name, value in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # zeros and ones by default, which hide what is left out
            value.normal_(1, 0.3)
    got, expected = logits_of(model), last_logits(model, batch())[:, ANSWERS]
    assert expected.std(0).min() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_adapter_counts_whether_merged_or_not():
    targets = ("q_proj", "v_proj", "o_proj", "down_proj")
    adapted = add_adapter(llama(), TuningSettings(targets=targets), seed=0).eval()
    plain = logits_of(llama())
    torch.testing.assert_close(logits_of(adapted), plain)  # a fresh adapter adds nothing
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.normal_(0, 0.3)
    expected = last_logits(adapted, batch())[:, ANSWERS]
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(logits_of(adapted), expected, rtol=1e-4, atol=1e-4)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits_of(adapted), plain)
    merged = copy.deepcopy(adapted)
    merged.merge_adapter()
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(merged.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_adapter_of_transformers_own_counts():
    """It makes no PEFT model: the Llama bears it itself."""
    model, plain = llama(), logits_of(llama())
    model.add_adapter(LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False), "own")
    expected = last_logits(model, batch())[:, ANSWERS]
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    model.disable_adapters()
    torch.testing.assert_close(logits_of(model), plain)
    model = llama()
    model.add_adapter(LoraConfig(target_modules=["embed_tokens"]), "own")
    assert cpu_decoder(model, ANSWERS, LIMIT) is None


def test_models_of_another_form_are_left_to_transformers(monkeypatch):
    assert cpu_decoder(llama(), ANSWERS, LIMIT) is not None
    assert cpu_decoder(DATA.model("gpt2"), ANSWERS, LIMIT) is None
    assert cpu_decoder(llama(hidden_act="gelu"), ANSWERS, LIMIT) is None
    assert cpu_decoder(llama().to(torch.bfloat16), ANSWERS, LIMIT) is None
    windowed = MistralForCausalLM(MistralConfig(**shape(sliding_window=64)))
    assert cpu_decoder(windowed, ANSWERS, 64) is not None
    assert cpu_decoder(windowed, ANSWERS, 65) is None
    adapted = add_adapter(llama(), TuningSettings(), seed=0)
    adapted.peft_config["default"].use_dora = True
    assert cpu_decoder(adapted, ANSWERS, LIMIT) is None
    monkeypatch.setattr(decoder, "MOST_PARAMETERS", 1000)
    assert cpu_decoder(llama(), ANSWERS, LIMIT) is None
