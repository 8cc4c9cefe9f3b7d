"""`python -m rarec.rella.merge`: merge an adapter into its language model, as one folder that needs no PEFT."""

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
        base_language_model: Artifact of the asset of this name.
        adapter: A folder in the artifact of `lora_checkpoint`.
        cache: Where models from a hub are kept; by default where the hub's own client keeps them.

    Raises:
        InputError: The adapter was tuned on another language model, a folder holds something else, or ``output`` is not
            empty.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty; name a folder that is empty or does not exist")
    if not (base_language_model / REFERENCE).is_file():
        raise InputError(f"{base_language_model} is not an artifact of base_language_model ({REFERENCE} is missing)")
    if not (adapter / TUNING).is_file():
        raise InputError(
            f"{adapter} is not an adapter ({TUNING} is missing); name a folder in the artifact of lora_checkpoint"
        )
    reference = ModelReference.open(base_language_model, cache)
    tuned_on = json.loads((adapter / TUNING).read_text())["base"]
    names = identities(base_language_model)
    base = tuned_on if tuned_on in names else names[0]
    adapted = load_adapter(reference.model(torch.device("cpu")), adapter, base)
    adapted.merge_and_unload().save_pretrained(output)
    reference.tokenizer().save_pretrained(output)


def identities(artifact: Path) -> list[str]:
    """Possible fingerprints of an artifact in this folder, the most likely first.

    The manifest tells it. Files from a remote store are here without a manifest, in `<fingerprint>/<data version>`.
    """
    folder, manifest = artifact.resolve(), artifact / MANIFEST
    told = [json.loads(manifest.read_text())["fingerprint"]] if manifest.is_file() else []
    return [*told, folder.name, folder.parent.name]


def hub_cache() -> Path | None:
    """Where assets keep models from a hub: under RAREC_HOME, or `.rarec` in this folder; None if there is none."""
    home = os.environ.get("RAREC_HOME", "").strip() or ".rarec"
    cache = Path(home).expanduser() / "cache" / "hub"
    return cache if cache.is_dir() else None


def main() -> None:
    """Merge the folders that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_language_model", type=Path, help="artifact folder of base_language_model")
    parser.add_argument("adapter", type=Path, help="folder of the adapter in the artifact of lora_checkpoint")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--cache",
        type=Path,
        default=hub_cache(),
        help="where models from a hub are kept (default: cache/hub under RAREC_HOME or .rarec; now: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        merge(arguments.base_language_model, arguments.adapter, arguments.output, arguments.cache)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"merged model in {arguments.output}")


if __name__ == "__main__":
    main()
