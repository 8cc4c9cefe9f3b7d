"""Small model folders, as they are published or as they get damaged."""

import json
from pathlib import Path
from typing import Any

import torch
from rella_toys import byte_tokenizer, tiny_model
from safetensors.torch import load_file, save_file
from tokenizer_families import save_sentencepiece

from rarec.rella.language_model import load_tokenizer
from rarec.rella.small_llama import train_tokenizer


def answering_tokenizer() -> Any:
    return train_tokenizer(["A viewer.\n"], 400, answers=("Yes", "No"))


def save_folder(folder: Path, kind: str = "llama", tokenizer: Any = None, **config: Any) -> Path:
    """A sound model with its tokenizer; ``config`` is what config.json says besides."""
    tokenizer = tokenizer or byte_tokenizer()
    tiny_model(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    say(folder, **config)
    return folder


def save_vicuna_form(folder: Path) -> Any:
    """A model with tokenizer.model and no tokenizer.json, as Vicuna is published; returns the tokenizer."""
    save_sentencepiece(folder)
    tokenizer = load_tokenizer(folder)
    save_folder(folder / "made", tokenizer=tokenizer)
    for name in ("config.json", "model.safetensors"):
        (folder / "made" / name).rename(folder / name)
    return tokenizer


def say(folder: Path, **config: Any) -> None:
    """Change config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def change_weights(folder: Path, change: Any) -> None:
    """Apply ``change`` to the dictionary of tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def shard(folder: Path, count: int = 2) -> list[Path]:
    """The weights in several files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [folder / f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for number, file in enumerate(files):
        save_file({name: tensors[name] for name in names[number::count]}, file, metadata={"format": "pt"})
    places = {name: files[number % count].name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files


def pickle_weights(folder: Path) -> Path:
    """The weights as they were published before safetensors."""
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").unlink()
    return file
