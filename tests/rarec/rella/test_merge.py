"""A base language model is known wherever its artifact lies, and found where the assets keep it."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from rella_toys import CPU, KINDS, LIMIT, configuration, save_random_adapter, toy_data
from transformers import AutoModelForCausalLM

from rarec.errors import InputError
from rarec.rella import merge as merging
from rarec.rella.language_model import ModelReference, load_model
from rarec.rella.merge import main, merge
from rarec.rella.tuning import TUNING, TuningSettings, add_adapter, load_adapter

BASE, VERSION, COMMIT = "b" * 32, "d" * 32, "c" * 40
DATA = toy_data()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base language model's files, an adapter tuned on it, and the logits of both together."""
    root = tmp_path_factory.mktemp("made")
    base, adapter = root / "base", root / "adapter"
    DATA.model().save_pretrained(base)
    DATA.tokenizer.save_pretrained(base)
    adapted = add_adapter(DATA.model(), TuningSettings(rank=2), seed=1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    adapted.save_pretrained(adapter)
    (adapter / TUNING).write_text(json.dumps({"base": BASE}))
    return base, adapter, logits(adapted.eval())


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 20)[None]).logits


def artifact(folder: Path, files: Path) -> Path:
    """The artifact of a model that was made here."""
    shutil.copytree(files, folder)
    ModelReference("scratch", "", folder, "none", LIMIT).save(folder)
    return folder


@pytest.mark.parametrize("place", [BASE, f"{BASE}/{VERSION}", "copied"])
def test_the_base_is_known_in_the_store_in_a_remote_stores_cache_and_by_its_manifest(made, tmp_path, place):
    files, adapter, wanted = made
    base = artifact(tmp_path / place, files)
    if place == "copied":
        (base / "manifest.json").write_text(json.dumps({"fingerprint": BASE}))
    merge(base, adapter, tmp_path / "merged")
    got = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval())
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("also", [(), ("o_proj",)])
def test_an_adapter_of_the_output_layer_is_merged_into_it_alone(kind, tied, also, tmp_path):
    """A layer that shares the embeddings' weights gets its own, so that adapter and merged model agree."""
    also = ("c_attn",) if also and kind == "gpt2" else also
    config = configuration(kind, len(DATA.tokenizer), spread=0.2)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    base, adapter = tmp_path / BASE, tmp_path / "adapter"
    model.save_pretrained(base)
    DATA.tokenizer.save_pretrained(base)
    ModelReference("scratch", "", base, "none", LIMIT).save(base)
    before = logits(model)
    adapted = save_random_adapter(model, adapter, 2, TuningSettings(rank=2, targets=("lm_head", *also)), base=BASE)
    wanted = logits(adapted.eval())
    assert (wanted - before).abs().max() > 0.1
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), before)
    merge(base, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", CPU)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged.get_input_embeddings().weight, model.get_input_embeddings().weight)
    loaded = load_adapter(load_model(base, CPU), adapter, BASE)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), wanted, rtol=1e-4, atol=1e-4)


def test_other_adapters_leave_tied_layers_tied(tmp_path):
    model = DATA.model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for targets, tied in ((("q_proj",), True), (("q_proj", "lm_head"), False)):
        adapted = add_adapter(model, TuningSettings(targets=targets), 1)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        adapted.unload()


def test_another_base_is_refused(made, tmp_path):
    files, adapter, _ = made
    other = artifact(tmp_path / "base_language_model" / "demo" / ("a" * 32), files)
    with pytest.raises(InputError, match=f"was tuned on language model {BASE} and cannot serve {'a' * 32};"):
        merge(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_folders_that_hold_something_else_are_named(made, tmp_path):
    files, adapter, _ = made
    base = artifact(tmp_path / BASE, files)
    with pytest.raises(
        InputError, match=r"/base is not an artifact of base_language_model \(reference.json is missing\)"
    ):
        merge(files, adapter, tmp_path / "merged")
    with pytest.raises(InputError, match=rf"{tmp_path} is not an adapter \(tuning.json is missing\); name a folder"):
        merge(base, tmp_path, tmp_path / "merged")


@pytest.mark.parametrize("told", ["RAREC_HOME", "--cache", "checkout"])
def test_a_hub_model_is_taken_from_where_the_assets_keep_it(made, tmp_path, monkeypatch, told):
    files, adapter, wanted = made
    home = tmp_path / (".rarec" if told == "checkout" else "home")
    shutil.copytree(files, home / "cache" / "hub" / "models--toys--tiny" / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("RAREC_HOME", raising=False)
    base = tmp_path / BASE
    base.mkdir()
    ModelReference(f"hub:toys/tiny@{COMMIT}", COMMIT, base, "none", LIMIT).save(base)
    arguments = [str(one) for one in (base, adapter, tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", ["merge", *arguments])
    with pytest.raises(SystemExit, match=rf"hub:toys/tiny@{COMMIT} cannot be downloaded"):
        main()
    if told == "RAREC_HOME":
        monkeypatch.setenv("RAREC_HOME", str(home))
    elif told == "--cache":
        monkeypatch.setattr(sys, "argv", ["merge", *arguments, "--cache", str(home / "cache" / "hub")])
    else:
        monkeypatch.chdir(tmp_path)
    main()
    got = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval())
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_an_empty_variable_counts_as_unset(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_HOME", " ")
    monkeypatch.chdir(tmp_path)
    assert merging.hub_cache() is None
