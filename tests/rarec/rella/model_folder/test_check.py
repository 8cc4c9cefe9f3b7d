"""A model folder from elsewhere is checked once, and what is wrong is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import (
    answering_tokenizer,
    change_weights,
    pickle_weights,
    save_folder,
    save_vicuna_form,
    say,
    shard,
)
from rella_toys import CPU, KINDS, byte_tokenizer
from safetensors.torch import load_file
from tokenizer_families import FAMILIES
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, LlamaForSequenceClassification, T5Config

from rarec.errors import InputError
from rarec.rella.language_model import find_answers, load_model
from rarec.rella.model_folder.check import check_model
from rarec.rella.model_folder.fetching import hash_of
from rarec.rella.model_folder.weights import read_model


@pytest.fixture
def folder(tmp_path):
    return save_folder(tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_sound_models_pass(kind, tied, tmp_path):
    """Without a token for padding, too; tied layers and computed buffers are not missing."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    save_folder(tmp_path, kind, tokenizer)
    if tied:
        say(tmp_path, tie_word_embeddings=True)
        change_weights(tmp_path, lambda tensors: tensors.pop("lm_head.weight", None))
    before = hash_of(tmp_path)
    assert check_model(tmp_path).tokenizer.pad_token is None
    assert hash_of(tmp_path) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizers_of_every_family_pass(family, tmp_path):
    check_model(save_folder(tmp_path, tokenizer=FAMILIES[family]()))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_missing_weights_are_named(name, folder):
    change_weights(folder, lambda tensors: tensors.pop(name))
    for check in (check_model, lambda folder: load_model(folder, CPU)):
        with pytest.raises(InputError, match=f"{folder}: the weights lack {name}, which would be random numbers"):
            check(folder)


def test_many_missing_weights_are_counted(folder):
    change_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers" in name])
    with pytest.raises(InputError, match=r"the weights lack model\.layers\.0.* and 13 more, which"):
        check_model(folder)


def test_weights_of_another_shape_are_named(folder):
    def narrow(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 16)

    change_weights(folder, narrow)
    for check in (check_model, lambda folder: load_model(folder, CPU)):
        with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight have the shape \(5, 16\), but config\."):
            check(folder)


def test_layers_that_would_be_ignored_are_named(folder):
    say(folder, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"more layers than config\.json says: model\.layers\.1\..* would be ignored"):
        check_model(folder)


def test_other_weights_besides_are_left_alone(folder):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["vision_tower.layers.7.weight"] = torch.ones(4)

    change_weights(folder, add)
    check_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(value, dtype, folder):
    def spoil(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = value

    change_weights(folder, spoil)
    with pytest.raises(InputError, match=r"the weights model\.layers\.1\.mlp\.up_proj\.weight are not all finite"):
        check_model(folder)


def test_damaged_and_missing_files_are_named(folder):
    files = shard(folder)
    check_model(folder)
    whole = files[1].read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b""):
        files[1].write_bytes(content)
        with pytest.raises(InputError, match=f"{files[1]} is damaged: .*; copy the file again"):
            check_model(folder)
    files[1].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=f"{files[1]} is a pointer of Git LFS.*git lfs pull"):
        check_model(folder)
    files[1].unlink()
    with pytest.raises(InputError, match=f"names files that are missing: {files[1].name}; copy all of the model's"):
        check_model(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [')
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is damaged"):
        check_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"holds no weights \(model\.safetensors or pytorch_model\.bin"):
        check_model(folder)


def test_pickled_weights_are_read_and_not_run(folder):
    tensors = load_file(folder / "model.safetensors")
    file = pickle_weights(folder)
    before = hash_of(folder)
    check_model(folder)
    assert hash_of(folder) == before  # nothing is converted there
    read = load_model(folder, CPU).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    ran = folder.parent / "ran"
    torch.save({**tensors, "model.norm.weight": _Touches(ran)}, file)
    with pytest.raises(InputError, match=r"a pickle of more than tensors, which could run code.*convert the model to"):
        check_model(folder)
    assert not ran.exists()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=f"{file} is damaged"):
        check_model(folder)


class _Touches:
    """Pickled so that reading it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "zero_point": True}}, "awq"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"compression_config": {"format": "pack-quantized"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
    ],
)
def test_quantised_weights_are_refused_by_what_the_configuration_says(config, method, folder):
    say(folder, **config)
    with pytest.raises(InputError, match=rf"the weights are quantised \({method}\), and RaRec reads only weights that"):
        check_model(folder)


def test_the_settings_of_older_quantisers_are_known(folder):
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(InputError, match=r"quantize_config\.json says that the weights are quantised"):
        check_model(folder)


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/something"}')
    with pytest.raises(InputError, match=r"holds an adapter \(adapter_config\.json\), not a language model"):
        check_model(folder)


def test_models_of_other_kinds_are_refused(folder, tmp_path):
    say(folder, model_type="t5", is_encoder_decoder=True)
    with pytest.raises(InputError, match=r"of the type 't5' .* is no causal language model; use a causal"):
        check_model(folder)
    say(folder, model_type="bart")
    with pytest.raises(InputError, match="says `is_encoder_decoder`; use a causal language model"):
        check_model(folder)
    say(folder, model_type="ourmodel")
    with pytest.raises(InputError, match=r"of the type 'ourmodel' .* is unknown to the installed version"):
        check_model(folder)
    say(folder, auto_map={"AutoModelForCausalLM": "modeling.Ours"})
    with pytest.raises(InputError, match=r"needs Python code of its own \(`auto_map` in config\.json\)"):
        check_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read: .*; copy the file again"):
        check_model(folder)


def test_code_beside_a_model_that_transformers_knows_is_not_needed(folder):
    say(folder, auto_map={"AutoModelForCausalLM": "modeling.Ours", "AutoConfig": "modeling.OurConfig"})
    check_model(folder)


def test_an_encoder_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    small = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
             "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    for causal in (True, False):
        torch.manual_seed(0)
        BertLMHeadModel(BertConfig(**small, is_decoder=causal)).save_pretrained(tmp_path)
        if causal:
            check_model(tmp_path)
        else:
            with pytest.raises(InputError, match=r"the language model is bidirectional .*; use a causal one"):
                check_model(tmp_path)


def test_a_classifier_lacks_the_output_layer(folder):
    LlamaForSequenceClassification(read_model(folder).config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"the weights lack lm_head\.weight"):
        check_model(folder)


def test_tokens_without_an_embedding_are_named(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Heat", "Alien"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"has 2 tokens without an embedding \('Alien', 'Heat'\), as the model has"):
        check_model(folder)


def test_special_tokens_without_an_embedding_are_named_if_the_folder_has_them(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"has 1 tokens without an embedding \('<\|im_end\|>'\)"):
        check_model(folder)


def test_a_token_for_padding_needs_no_embedding(folder):
    """Padding is not read; many published tokenizers got such a token afterwards."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    check_model(folder)


def test_padding_beyond_the_embeddings_is_named(folder):
    say(folder, pad_token_id=5000)
    with pytest.raises(InputError, match=r"says pad_token_id = 5000, but vocab_size = \d+; set pad_token_id to null"):
        check_model(folder)


def test_more_embeddings_than_tokens_are_usual(tmp_path):
    check_model(save_folder(tmp_path, tokenizer=byte_tokenizer(texts=("a much longer text than the others",) * 9)))
    byte_tokenizer().save_pretrained(tmp_path)
    check_model(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_named(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(InputError, match=f"{folder}: the tokenizer cannot be read: "):
        check_model(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=f"{folder}: the tokenizer cannot be read: "):
        check_model(folder)


def test_a_chat_template_that_fails_is_named_with_its_folder(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=f"{folder}: the chat template does not write .*: it fails .*roles must alter"):
        check_model(folder)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_as_vicunas_is_used(pickled, tmp_path):
    """tokenizer.model without tokenizer.json, weights in *.bin files."""
    tokenizer = save_vicuna_form(tmp_path)
    if pickled:
        pickle_weights(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    reader = check_model(tmp_path)
    model = load_model(tmp_path, CPU)
    tokens = np.concatenate([reader.before, reader.messages(["A user: Séance\n日本:"]).tokens])
    assert model(torch.from_numpy(tokens.astype(np.int64))[None]).logits.isfinite().all()
    assert tokenizer.decode(tokens[1:]) == "A user: Séance\n日本:"
    assert tokenizer.convert_ids_to_tokens(find_answers(reader, "Yes", "No").tokens) == ["▁No", "▁Yes"]


def test_the_answers_are_found_by_what_the_check_returns(tmp_path):
    reader = check_model(save_folder(tmp_path, tokenizer=answering_tokenizer()))
    assert reader.tokenizer.convert_ids_to_tokens(find_answers(reader, "Yes", "No").tokens) == [" No", " Yes"]


def test_a_model_of_another_configuration_is_not_read_in_part(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    (folder / "config.json").write_text(json.dumps(T5Config().to_dict()))
    with pytest.raises(InputError, match="of the type 't5'"):
        check_model(folder)
