"""Identity: the fingerprint of what an artifact is made from, and the data version of what it holds."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no white space. NaN and types that JSON lacks are an error."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # keys become text before they are sorted
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(asset: str, code_version: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """32 hex digits over the asset, its code version, its resolved configuration and its inputs' data versions."""
    identity = {"asset": asset, "code_version": code_version, "config": dict(config), "inputs": dict(inputs)}
    return text_digest(canonical_json(identity))[:32]


def data_version(digests: Mapping[str, str]) -> str:
    """32 hex digits over the files' digests: equal content has an equal version, whatever it was made from."""
    return text_digest(canonical_json(dict(digests)))[:32]


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
