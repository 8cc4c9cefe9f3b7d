import json

import pytest
from artifact_toys import CONFIG, FP, INPUTS

from resources.artifacts.identity import canonical_json, data_version, fingerprint


def test_fingerprint_depends_on_each_part_and_not_on_order():
    assert len(FP) == 32
    assert fingerprint("memory_bank", "1", {"split": {"seed": 1}, "k": 10}, INPUTS) == FP
    others = {
        fingerprint("item_index", "1", CONFIG, INPUTS),
        fingerprint("memory_bank", "2", CONFIG, INPUTS),
        fingerprint("memory_bank", "1", {**CONFIG, "k": 11}, INPUTS),
        fingerprint("memory_bank", "1", CONFIG, {"interactions": "abd"}),
        fingerprint("memory_bank", "1", CONFIG, {"user_sequences": "abc"}),
    }
    assert len(others | {FP}) == 6


def test_fingerprint_and_data_version_never_change():
    """Else every installation would build its artifacts again."""
    assert FP == "541e821d74333d0c694c80895f1a70fa"
    assert data_version({"b.txt": "b" * 64, "a.txt": "a" * 64}) == "e41b0468cae0399a58f5cf85d33350b8"


def test_canonical_json_is_stable_over_a_round_trip_and_refuses_nan():
    value = {10: "a", 9: ("x", 1.5)}
    assert canonical_json(value) == '{"10":"a","9":["x",1.5]}'
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})
    with pytest.raises(TypeError):
        canonical_json({"a": object()})
