"""Whether a model folder from elsewhere can be used: asked once, before anything is computed with it."""

import json
from pathlib import Path
from typing import Any

import torch

from rarec.errors import InputError, one_line
from rarec.rella.language_model import bidirectional, is_causal, load_tokenizer
from rarec.rella.model_folder.fetching import ADAPTER, adapter_fault
from rarec.rella.model_folder.weights import check_numbers, read_model, weight_files
from rarec.text.reader import PromptReader

_SHOWN = 3  # tokens in a message


def check_model(folder: Path) -> PromptReader:
    """Check a model folder, without holding more of the model in memory than its embeddings and a layer.

    Returns:
        How its tokenizer reads prompts.

    Raises:
        InputError: The model is quantised, needs code of its own, is no causal language model, or is an adapter;
            weights are missing, damaged, of another shape or not finite; the tokenizer or its chat template cannot be
            used, or the tokenizer has tokens without an embedding. The message says what to do.
    """
    from transformers import AutoConfig

    check_form(folder)
    weight_files(folder)
    tokenizer = load_tokenizer(folder)
    try:
        reader = PromptReader(tokenizer)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    check_numbers(folder)
    model = read_model(folder, device_map="meta")
    _check_embeddings(folder, tokenizer, model.get_input_embeddings().weight.shape[0])
    _check_causal(folder, AutoConfig.from_pretrained(folder, trust_remote_code=False))
    return reader


def check_form(folder: Path) -> None:
    """Check what config.json says about the kind of model.

    Raises:
        InputError: See `check_model`.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if (folder / ADAPTER).is_file():
        raise InputError(adapter_fault(folder))
    try:
        config = json.loads((folder / "config.json").read_text())
        kind = str(config.get("model_type", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {one_line(error)}; copy the file again") from error
    _refuse_quantised(folder, config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if "auto_map" in config and kind not in CONFIG_MAPPING_NAMES:
            why = "needs Python code of its own (`auto_map` in config.json), which RaRec does not run"
        elif kind in CONFIG_MAPPING_NAMES:
            why = "is no causal language model"
        else:
            why = "is unknown to the installed version of transformers"
        raise InputError(
            f"{folder}: a model of the type {kind!r} (`model_type` in config.json) {why}; use a causal language model "
            "that transformers supports, such as Llama, Mistral, Qwen or Gemma"
        )
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"{folder}: config.json says `is_encoder_decoder`; use a causal language model, which has only a decoder"
        )
    padding, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        raise InputError(
            f"{folder}: config.json says pad_token_id = {padding}, but vocab_size = {rows}; set pad_token_id to null, "
            "as RaRec needs no token for padding"
        )


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    nested = [part for part in config.values() if isinstance(part, dict)]
    for part in (config, *nested):
        for name in ("quantization_config", "compression_config"):
            if isinstance(found := part.get(name), dict):
                method = found.get("quant_method") or "compressed-tensors"
                raise _quantised(folder, f"config.json says that the weights are quantised ({method})")
    for name in ("quantize_config.json", "quant_config.json"):  # of older packages
        if (folder / name).is_file():
            raise _quantised(folder, f"{name} says that the weights are quantised")


def _quantised(folder: Path, what: str) -> InputError:
    return InputError(
        f"{folder}: {what}, and RaRec reads only weights that are not; use the model that they were made from. With "
        "quantisation = 8bit or nf4, RaRec quantises it itself on a GPU"
    )


def _check_embeddings(folder: Path, tokenizer: Any, rows: int) -> None:
    """Every token of the folder has an embedding.

    Padding is not read, so its token needs none; nor do special tokens that only transformers adds.
    """
    files = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    declared = "".join((folder / name).read_text() for name in files if (folder / name).is_file())
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = [
        token
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and number != tokenizer.pad_token_id
        if token not in special or json.dumps(token) in declared or json.dumps(token, ensure_ascii=False) in declared
    ]
    if beyond:
        shown = ", ".join([*map(repr, sorted(beyond)[:_SHOWN]), *(["…"] if len(beyond) > _SHOWN else [])])
        raise InputError(
            f"{folder}: the tokenizer has {len(beyond)} tokens without an embedding ({shown}), as the model has {rows} "
            "embeddings; use the tokenizer that belongs to the model, or enlarge the model with "
            "`resize_token_embeddings` of transformers"
        )


def _check_causal(folder: Path, config: Any) -> None:
    """Run the model's embeddings and first layer, if these can be cut out."""
    text = config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    for name, value in vars(text).items():
        if "layer" in name and isinstance(value, list) and len(value) == layers:  # such as `layer_types`
            setattr(text, name, value[:1])
    text.num_hidden_layers = 1
    try:
        causal = is_causal(read_model(folder, config=config, dtype=torch.float32).eval())
    except (InputError, RuntimeError, LookupError, AttributeError, TypeError):
        return  # it cannot be cut; loading the whole model checks it
    if not causal:
        raise bidirectional(folder)
