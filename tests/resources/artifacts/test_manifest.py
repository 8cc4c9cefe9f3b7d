import json

import pytest
from artifact_toys import CONFIG, FP, INPUTS

from resources.artifacts.manifest import DamagedArtifact, FileRecord, Manifest

MANIFEST = Manifest(
    asset="memory_bank", partition="demo", fingerprint=FP, code_version="1", config=CONFIG, inputs=INPUTS,
    created="2026-01-01T00:00:00+00:00", metadata={"rows": 3},
    files={"b.txt": FileRecord(sha256="b" * 64, bytes=1), "a.txt": FileRecord(sha256="a" * 64, bytes=2)},
)  # fmt: skip


def test_a_manifest_is_the_same_after_a_round_trip():
    assert Manifest.from_json(MANIFEST.to_json(), "here") == MANIFEST


def test_data_version_depends_on_content_alone():
    other = MANIFEST.model_copy(update={"fingerprint": "f" * 32, "metadata": {}, "created": "later"})
    assert other.data_version == MANIFEST.data_version == "e41b0468cae0399a58f5cf85d33350b8"
    changed = {**MANIFEST.files, "b.txt": FileRecord(sha256="c" * 64, bytes=1)}
    assert MANIFEST.model_copy(update={"files": changed}).data_version != MANIFEST.data_version


def altered(**values):
    return json.dumps({**json.loads(MANIFEST.to_json()), **values})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        (MANIFEST.to_json()[:-20], "cannot be read"),
        (altered(files={"a.txt": {"bytes": "many"}}), "cannot be read"),
        (json.dumps(MANIFEST.model_dump()), "cannot be read"),  # no checksum
        (altered(metadata={"rows": 4}), "was altered after it was written"),
        (altered(checksum="0"), "was altered after it was written"),
    ],
)
def test_a_damaged_manifest_is_named_with_what_to_do(text, fault):
    with pytest.raises(DamagedArtifact) as error:
        Manifest.from_json(text, "store/manifest.json")
    assert str(error.value) == (
        f"Damaged artifact: store/manifest.json {fault}. Materialise the asset again with force to rebuild it."
    )


@pytest.mark.parametrize("name", ["../b.txt", "/etc/passwd", "a/../../b"])
def test_a_manifest_whose_files_lie_elsewhere_is_refused(name):
    outside = MANIFEST.model_copy(update={"files": {name: MANIFEST.files["b.txt"]}})
    with pytest.raises(DamagedArtifact, match="was altered"):
        Manifest.from_json(outside.to_json(), "here")
