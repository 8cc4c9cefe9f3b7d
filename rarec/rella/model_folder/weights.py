"""The weights of a model folder: which files hold them, whether they are all there, and reading them into a model.

Pickled weights (`.bin`) are read by PyTorch's loader for tensors alone, which runs no code.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rarec.errors import InputError, one_line

# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SHOWN = 5  # names in a message
_CHUNK = 1 << 24  # numbers looked at at once
_LFS = b"version https://git-lfs"
_NUMBER = re.compile(r"\.\d+\.")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights.

    Raises:
        InputError: There are none, an index is damaged, or a file that it names is missing.
    """
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise InputError(
            f"{folder} holds no weights ({' or '.join(WEIGHTS[::2])}, or the index of several files); copy or convert "
            "them there, for example with `save_pretrained` of transformers"
        )
    if not name.endswith(".json"):
        return [folder / name]
    try:
        shards = sorted(set(json.loads((folder / name).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / name} is damaged: {one_line(error)}; copy the file again") from error
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {name} names files that are missing: {_shown(missing)}; copy all of the model's files there"
        )
    return [folder / shard for shard in shards]


def tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a file of weights.

    Raises:
        InputError: The file is damaged, or holds something else.
    """
    with file.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise InputError(f"{file} is a pointer of Git LFS, not the weights; run `git lfs pull` in its folder")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  a handle, which cannot be iterated
                    yield name, opened.get_tensor(name)
            return
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged: {one_line(error)}; copy the file again") from error
    except Exception as error:  # whatever stands in a file that is no pickle of tensors
        raise InputError(
            f"{file} is damaged, or a pickle of more than tensors, which could run code: {one_line(error)}. Copy it "
            "again, or convert the model to safetensors where you trust it, with `save_pretrained` of transformers"
        ) from error
    yield from ((name, tensor) for name, tensor in held.items() if isinstance(tensor, Tensor))


def check_numbers(folder: Path) -> None:
    """Read all weights once, a tensor at a time.

    Raises:
        InputError: A file is damaged, or a weight is not finite; names the tensor.
    """
    for file in weight_files(folder):
        for name, tensor in tensors(file):
            finite = not tensor.is_floating_point() or all(
                bool(torch.isfinite(part.float()).all()) for part in tensor.flatten().split(_CHUNK)
            )
            if not finite:
                raise InputError(
                    f"{file}: the weights {name} are not all finite; copy the file again, or use another model"
                )


def read_model(folder: Path, **options: Any) -> Any:
    """The folder's causal language model, with all of its weights from there.

    Args:
        options: For `from_pretrained` of transformers.

    Raises:
        InputError: The model cannot be read, or weights are missing or have another shape.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # we report progress ourselves
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # a pair
            folder, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, ImportError, LookupError, AttributeError, AssertionError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    model, found = loaded
    _refuse_incomplete(folder, model, found, whole="config" not in options)
    return model


def _unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"{folder}: the language model cannot be read: {one_line(error)}. Its weights must be *.safetensors or "
        "pytorch_model*.bin files, as `save_pretrained` of transformers writes them"
    )


def _refuse_incomplete(folder: Path, model: Any, found: dict[str, Any], whole: bool) -> None:
    """Refuse weights that would be random, and layers that would be ignored."""
    remedy = "copy the model's files again, with the config.json that belongs to them"
    if found["missing_keys"]:
        raise InputError(
            f"{folder}: the weights lack {_shown(found['missing_keys'])}, which would be random numbers; {remedy}"
        )
    if found["mismatched_keys"]:
        name, there, wanted = sorted(found["mismatched_keys"])[0]
        raise InputError(
            f"{folder}: the weights {name} have the shape {tuple(there)}, but config.json says {tuple(wanted)}"
            f"{_more(len(found['mismatched_keys']) - 1)}; {remedy}"
        )
    known = {_NUMBER.sub(".#.", name) for name in model.state_dict()}
    ignored = [name for name in found["unexpected_keys"] if _NUMBER.sub(".#.", name) in known]
    if whole and ignored:
        raise InputError(
            f"{folder}: the weights hold more layers than config.json says: {_shown(ignored)} would be ignored; "
            f"{remedy}"
        )


def _shown(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + _more(len(names) - _SHOWN)


def _more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""
