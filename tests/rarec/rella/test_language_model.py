from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from rarec.errors import InputError
from rarec.rella.language_model import (
    LanguageModelSettings,
    ModelReference,
    context_length,
    fetch,
    find_answers,
    last_logits,
    load_model,
    load_tokenizer,
    pad,
)

CPU = torch.device("cpu")
VOCABULARY = 40
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, head_dim=8),
    "qwen": Qwen2Config(**SMALL),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}


def words(*known):
    vocabulary = {word: number for number, word in enumerate(["?", *known])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")


@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_and_kept_logits_change_nothing(kind, tmp_path):
    """Against each prompt alone, unpadded, with the logits of every place."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(tmp_path)
    model = load_model(tmp_path, CPU)
    assert not model.training
    lengths = np.array([5, 12, 1, 9])
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, lengths.sum()).astype(np.int32)
    rows = np.array([1, 3, 0, 2])
    batch = pad(tokens, lengths, rows, CPU)
    assert batch.tokens.shape == (4, 12)
    with torch.no_grad():
        got = last_logits(model, batch)
        ends = lengths.cumsum()
        for place, row in enumerate(rows):
            alone = torch.from_numpy(tokens[ends[row] - lengths[row] : ends[row]].astype(np.int64))[None]
            torch.testing.assert_close(got[place], model(alone).logits[0, -1], rtol=1e-4, atol=1e-5)
    assert got.shape == (4, VOCABULARY)
    assert got.std(0).min() > 0  # the prompts do differ


def test_threads_do_not_get_each_others_places():
    """As the MLflow server's, which calls one model from many."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    rng = np.random.default_rng(0)
    sizes = [np.array(sizes) for sizes in ([3, 9], [5, 6, 2, 8, 7], [4], [9, 9, 1])]
    batches = [pad(rng.integers(1, VOCABULARY, n.sum()).astype(np.int32), n, np.arange(len(n)), CPU) for n in sizes]

    @torch.no_grad()
    def ask(number):
        return last_logits(model, batches[number % len(batches)])

    alone = [ask(number) for number in range(len(batches))]
    with ThreadPoolExecutor(4) as threads:
        for number, got in enumerate(threads.map(ask, range(100))):
            torch.testing.assert_close(got, alone[number % len(batches)])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_that_reads_in_both_directions_is_refused(tmp_path):
    small = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    for causal in (True, False):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(BertConfig(**small, is_decoder=causal)).save_pretrained(tmp_path)
        if causal:
            load_model(tmp_path, CPU)
        else:
            with pytest.raises(InputError, match=r"is bidirectional .*; use a causal one"):
                load_model(tmp_path, CPU)


def test_padding_by_hand():
    batch = pad(np.array([7, 8, 9, 4], dtype=np.int32), np.array([3, 1]), np.array([1, 0]), CPU)
    assert batch.tokens.tolist() == [[4, 0, 0], [7, 8, 9]]
    assert batch.lengths.tolist() == [1, 3]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]


def test_answers_are_found_with_and_without_a_space():
    assert find_answers(words(" Yes", "Yes", " No", "No"), "Yes", "No").tokens == [3, 1]
    assert find_answers(words("Yes", "No"), "Yes", "No").tokens == [2, 1]
    with pytest.raises(InputError, match=r"no single tokens for 'Yes' and 'No'.*set the template's `yes` and `no`"):
        find_answers(words("Yes"), "Yes", "No")


def test_a_missing_model_says_how_to_provide_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"path:.*does not hold a language model \(config\.json is missing\)"):
        fetch(f"path:{tmp_path}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hub:nobody/nothing@abc cannot be downloaded.*set source = path:<folder>"):
        fetch("hub:nobody/nothing@abc", cache=tmp_path)


def test_a_reference_finds_the_model_again(tmp_path):
    model, artifact = tmp_path / "model", tmp_path / "artifact"
    artifact.mkdir()
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(model)
    source = f"path:{model}"
    ModelReference(source, fetch(source)[1], model, "none", 32).save(artifact)
    back = ModelReference.open(artifact)
    assert (back.folder, back.context_length()) == (model, 32)
    ModelReference("scratch", "", artifact, "none", 99).save(artifact)
    assert ModelReference.open(artifact).folder == artifact


def test_a_folder_that_changed_is_refused(tmp_path):
    model, artifact = tmp_path / "model", tmp_path / "artifact"
    artifact.mkdir()
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(model)
    source = f"path:{model}"
    ModelReference(source, fetch(source)[1], model, "none", 32).save(artifact)
    assert ModelReference.open(artifact).folder == model
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"the files in .* \(\w+\) have changed since `base_language_model` was materialised"
    ):
        ModelReference.open(artifact)


def test_answers_behind_a_chat_template_follow_its_white_space():
    tokenizer = words(" Yes", "Yes", " No", "No")
    tokenizer.chat_template = "{% for m in messages %}<u>{{ m.content }}</u>\n{% endfor %}"
    assert find_answers(tokenizer, "Yes", "No").tokens == [4, 2]
    tokenizer.chat_template = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}"
    assert find_answers(tokenizer, "Yes", "No").tokens == [3, 1]


def test_damaged_folders_are_named(tmp_path):
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path)
    folder, before = fetch(f"path:{tmp_path}")
    assert folder == tmp_path
    (tmp_path / "model.safetensors").unlink()
    assert fetch(f"path:{tmp_path}")[1] != before  # other files are another model
    with pytest.raises(InputError, match=r"the language model cannot be read: .*model\.safetensors"):
        load_model(tmp_path, CPU)
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_quantised_weights_need_a_gpu(tmp_path):
    with pytest.raises(InputError, match="quantisation = nf4 needs a GPU and the package bitsandbytes"):
        load_model(tmp_path, CPU, "nf4")


def test_context_is_the_smaller_of_setting_and_model():
    assert context_length(CONFIGS["llama"], 2048) == 64
    assert context_length(CONFIGS["gpt2"], 32) == 32
    assert context_length(object(), 100) == 100


def test_settings_refuse_contradictions():
    for source in ("scratch", "path:/models/x", "hub:a/b@main", "hub:gpt2@v1.0"):
        assert LanguageModelSettings(source=source).source == source
    with pytest.raises(ValidationError, match="with a revision, as the model must not change"):
        LanguageModelSettings(source="hub:a/b")
    with pytest.raises(ValidationError, match="dim = 36 must be an even multiple of heads = 4"):
        LanguageModelSettings(dim=36)
    few = {"epochs": 3, "max_tokens": 100}
    assert LanguageModelSettings(**few, tokens=300).tokens == 300
    with pytest.raises(ValidationError, match=r"tokens = 299 is less than .*; raise tokens to 300, or"):
        LanguageModelSettings(**few, tokens=299)
    assert LanguageModelSettings(source="path:/models/x", **few, tokens=299).source == "path:/models/x"
