import pytest
from pydantic import ValidationError

from rarec.raserec.settings import EncoderSettings, FinetuneSettings, PretrainSettings


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (EncoderSettings, {"dim": 10, "heads": 4}, "dim = 10 is not a multiple of heads = 4"),
        (PretrainSettings, {"encoder": "bert4rec", "heads": 3}, "dim = 64 is not a multiple of heads = 3"),
        (EncoderSettings, {"max_length": 20, "context_stride": 21}, "context_stride = 21 exceeds max_length = 20"),
        (EncoderSettings, {"encoder": "lstm"}, "'sasrec', 'gru4rec' or 'bert4rec'"),
        (EncoderSettings, {"hidden_dropout": 1.0}, "less than 1"),
        (PretrainSettings, {"batch_size": 1}, "greater than or equal to 2"),
        (PretrainSettings, {"learning_rate": 0.0}, "greater than 0"),
        (PretrainSettings, {"contrastiv_weight": 0.1}, "Extra inputs are not permitted"),
        (FinetuneSettings, {"alpha": 1.0}, "alpha = 1 gives the retrieval-augmented module no weight"),
        (FinetuneSettings, {"beta": 1.5}, "less than or equal to 1"),
        (FinetuneSettings, {"memories": 0}, "greater than or equal to 1"),
    ],
)
def test_contradictions_and_impossible_values_are_refused(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)


def test_what_only_looks_like_a_contradiction_is_accepted():
    assert EncoderSettings(encoder="gru4rec", dim=9, heads=2).dim == 9  # heads mean nothing to a GRU
    assert EncoderSettings(max_length=20, context_stride=20).context_stride == 20
    assert FinetuneSettings(alpha=0.0, beta=0.0).beta == 0


def test_defaults_are_the_papers_for_beauty():
    stage1, stage2 = PretrainSettings(), FinetuneSettings()
    assert (stage1.dim, stage1.inner_dim, stage1.layers, stage1.heads) == (64, 256, 2, 2)
    assert (stage1.hidden_dropout, stage1.attention_dropout, stage1.max_length) == (0.5, 0.5, 50)
    assert (stage1.context_stride, stage1.contrastive_weight, stage1.temperature) == (1, 0.1, 1.0)
    assert (stage2.memories, stage2.alpha, stage2.beta, stage2.dropout) == (20, 0.5, 1.0, 0.5)
    assert (stage2.batch_size, stage2.learning_rate, stage1.learning_rate) == (1024, 1e-3, 1e-3)


@pytest.mark.parametrize("kind", [EncoderSettings, PretrainSettings, FinetuneSettings])
def test_settings_are_frozen_described_and_survive_json(kind):
    settings = kind()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 3
    assert all(field.description for field in kind.model_fields.values())
    assert kind.model_validate_json(settings.model_dump_json()) == settings
