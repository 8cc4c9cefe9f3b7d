"""`python -m rarec.rella.merge`: a language model with its adapter merged in, as one folder that needs no PEFT."""

import argparse
import json
import os
from pathlib import Path

import torch

from rarec.errors import InputError
from rarec.rella.language_model import REFERENCE, ModelReference
from rarec.rella.tuning import TUNING, load_adapter

MANIFEST = "manifest.json"  # of the artifact store


def merge(base_language_model: Path, adapter: Path, output: Path, cache: Path | None = None) -> None:
    """Write the merged model and its tokenizer into ``output``, as `save_pretrained` of transformers does.

    Args:
        base_language_model: artifact of the asset of this name.
        adapter: a folder of the artifact of `lora_checkpoint`.
        cache: where models of a hub are; by default where the hub's own client keeps them.

    Raises:
        InputError: the adapter was tuned on another language model, a folder holds something else, or ``output`` holds
            something.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds files; name a folder that is empty or does not exist")
    if not (base_language_model / REFERENCE).is_file():
        raise InputError(f"{base_language_model} holds no language model's artifact ({REFERENCE} is missing)")
    if not (adapter / TUNING).is_file():
        raise InputError(
            f"{adapter} holds no adapter ({TUNING} is missing); name one of the folders in lora_checkpoint's artifact"
        )
    reference = ModelReference.open(base_language_model, cache)
    tuned_on = json.loads((adapter / TUNING).read_text())["base"]
    names = identities(base_language_model)
    base = tuned_on if tuned_on in names else names[0]
    adapted = load_adapter(reference.model(torch.device("cpu")), adapter, base)
    adapted.merge_and_unload().save_pretrained(output)
    reference.tokenizer().save_pretrained(output)


def identities(artifact: Path) -> list[str]:
    """What the fingerprint of an artifact in this folder may be, the likeliest first.

    Its manifest tells. A remote store's files lie here without it, in `<fingerprint>/<data version>`.
    """
    folder, manifest = artifact.resolve(), artifact / MANIFEST
    told = [json.loads(manifest.read_text())["fingerprint"]] if manifest.is_file() else []
    return [*told, folder.name, folder.parent.name]


def hub_cache() -> Path | None:
    """Where assets keep the models of a hub: under RAREC_HOME, else under `.rarec` here; None if that is not there."""
    home = os.environ.get("RAREC_HOME", "").strip() or ".rarec"
    cache = Path(home).expanduser() / "cache" / "hub"
    return cache if cache.is_dir() else None


def main() -> None:
    """Read the folders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_language_model", type=Path, help="artifact folder of base_language_model")
    parser.add_argument("adapter", type=Path, help="folder of the adapter in the artifact of lora_checkpoint")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--cache",
        type=Path,
        default=hub_cache(),
        help="where models of a hub are (default: cache/hub under RAREC_HOME or .rarec, if there; now: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        merge(arguments.base_language_model, arguments.adapter, arguments.output, arguments.cache)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"merged model in {arguments.output}")


if __name__ == "__main__":
    main()
