"""Model folders from a hub or from this machine, and what pins them."""

import hashlib
import json
import re
from pathlib import Path

from rarec.data.sources.files import sha256_of
from rarec.errors import InputError, one_line

HUB = re.compile(r"^hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[\w./-]+)$")
ADAPTER = "adapter_config.json"
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_PICKLED = ["pytorch_model*.bin"]  # fetched only if there is nothing better


def fetch(source: str, cache: Path | None = None) -> tuple[Path, str]:
    """The folder of a model from a hub or a path, and its revision: the commit, or the hash of the folder's files.

    Raises:
        InputError: There is no such model, or it cannot be reached. The message says how to provide it.
    """
    if source.startswith("path:"):
        folder = Path(source.removeprefix("path:")).expanduser()
        if not (folder / "config.json").is_file():
            if (folder / ADAPTER).is_file():
                raise InputError(f"{source}: {adapter_fault(folder)}")
            raise InputError(
                f"{source}: {folder} does not hold a language model (config.json is missing); put one there, as "
                "written by `save_pretrained` of transformers"
            )
        return folder, hash_of(folder)
    match = HUB.match(source)
    assert match is not None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                match["name"], revision=match["revision"], cache_dir=cache, allow_patterns=patterns, etag_timeout=10
            )
        )

    try:
        folder = download(_FILES)
        if not any(folder.glob("*.safetensors")):
            folder = download(_FILES + _PICKLED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{source} cannot be downloaded: {one_line(error)}. Check name and revision. If this machine cannot reach "
            "the hub, copy the model's folder here and set source = path:<folder>"
        ) from error
    return folder, folder.name  # a snapshot's folder is named after its commit


def adapter_fault(folder: Path) -> str:
    """What to tell the user who named the folder of an adapter."""
    return (
        f"{folder} holds an adapter ({ADAPTER}), not a language model; name its base model, or merge the two with "
        "`merge_and_unload` of PEFT and name the merged folder"
    )


def hash_of(folder: Path) -> str:
    """Hash over the files of a folder and their names."""
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
