"""`python -m rarec.rella.merge`: a language model with its adapter merged in, as one folder that needs no PEFT."""

import argparse
from pathlib import Path

import torch

from rarec.errors import InputError
from rarec.rella.language_model import ModelReference
from rarec.rella.tuning import load_adapter


def merge(base_language_model: Path, adapter: Path, output: Path) -> None:
    """Write the merged model and its tokenizer into ``output``, as `save_pretrained` of transformers does.

    Args:
        base_language_model: artifact of the asset of this name.
        adapter: a folder of the artifact of `lora_checkpoint`.

    Raises:
        InputError: the adapter was tuned on another language model, or ``output`` holds something.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds files; name a folder that is empty or does not exist")
    reference = ModelReference.open(base_language_model)
    # An artifact's folder is called by its fingerprint, which is the base's identity.
    adapted = load_adapter(reference.model(torch.device("cpu")), adapter, base_language_model.resolve().name)
    adapted.merge_and_unload().save_pretrained(output)
    reference.tokenizer().save_pretrained(output)


def main() -> None:
    """Read the three folders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_language_model", type=Path, help="artifact folder of base_language_model")
    parser.add_argument("adapter", type=Path, help="folder of the adapter in the artifact of lora_checkpoint")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        merge(arguments.base_language_model, arguments.adapter, arguments.output)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"merged model in {arguments.output}")


if __name__ == "__main__":
    main()
