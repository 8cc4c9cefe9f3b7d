import pytest
from pydantic import ValidationError

from rarec.retrieval.settings import IndexSettings, MemorySettings


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (IndexSettings, {"index": "ivf", "ivf_lists": 4, "ivf_probes": 5}, "ivf_probes = 5 exceeds ivf_lists = 4"),
        (MemorySettings, {"index": "ivf", "ivf_lists": 4, "ivf_probes": 5}, "ivf_probes = 5 exceeds ivf_lists = 4"),
        (MemorySettings, {"index": "hnsw", "time_cut": True}, "time_cut needs exact search; set index = flat"),
        (MemorySettings, {"minimum_recall": 1.1}, "less than or equal to 1"),
    ],
)
def test_contradictions_and_impossible_values_are_refused(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)


def test_what_only_looks_like_a_contradiction_is_accepted():
    assert MemorySettings(index="flat", ivf_lists=4).ivf_probes > 4  # not in use


@pytest.mark.parametrize("kind", [IndexSettings, MemorySettings])
def test_settings_are_frozen_described_and_survive_json(kind):
    settings = kind()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 3
    assert all(field.description for field in kind.model_fields.values())
    assert kind.model_validate_json(settings.model_dump_json()) == settings
