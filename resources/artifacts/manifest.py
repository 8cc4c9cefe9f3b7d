"""Manifests: the record in every artifact of what it was made from and which files it holds."""

import json
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from rarec.config import Settings
from rarec.errors import InputError
from resources.artifacts.identity import canonical_json, data_version, text_digest

MANIFEST = "manifest.json"


class DamagedArtifact(InputError):
    """A file of a committed artifact is missing or altered."""


def damaged(where: str, fault: str) -> DamagedArtifact:
    """The error for the file ``where``; ``fault`` completes the sentence that begins with its name."""
    return DamagedArtifact(f"Damaged artifact: {where} {fault}. Materialise the asset again with force to rebuild it.")


class FileRecord(Settings):
    """Checksum of one file."""

    sha256: str = Field(description="Hex digest of the content.")
    bytes: int = Field(description="Size.")


class Manifest(Settings):
    """What an artifact was made from, and what it holds."""

    asset: str = Field(description="Asset name.")
    partition: str = Field(description="Data set.")
    fingerprint: str = Field(description="Identity, see `fingerprint()`.")
    code_version: str = Field(description="Version of the producing code.")
    config: dict[str, Any] = Field(description="Resolved configuration.")
    inputs: dict[str, str] = Field(description="Data version of each input, by input name.")
    created: str = Field(description="UTC time of commit, ISO 8601.")
    metadata: dict[str, Any] = Field(description="Figures the producer wants to keep, such as row counts.")
    files: dict[str, FileRecord] = Field(description="Every file, by its path relative to the artifact.")

    @property
    def data_version(self) -> str:
        """Version of the content: equal files, equal data version."""
        return data_version({name: record.sha256 for name, record in self.files.items()})

    def to_json(self) -> str:
        """JSON that carries its own checksum."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "checksum": text_digest(canonical_json(body))}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Parse and verify; raises DamagedArtifact naming ``where``."""
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            manifest = cls.model_validate(body)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise damaged(where, "cannot be read") from error
        names = [PurePosixPath(name) for name in manifest.files]
        if checksum != text_digest(canonical_json(body)) or any(n.is_absolute() or ".." in n.parts for n in names):
            raise damaged(where, "was altered after it was written")
        return manifest
