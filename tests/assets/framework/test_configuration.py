"""Settings come from the run, the data set or the field; what is refused is named before anything is read."""

import dagster as dg
import pytest
from plant import failures, metadata

from assets.framework.configuration import StageConfig, in_force, resolve, run_configuration
from rarec.raserec.settings import FinetuneSettings, PretrainSettings


@pytest.mark.parametrize(
    ("asset", "settings", "message"),
    [
        ("raserec_finetuned", {"alpha": 2.0}, "alpha is 2.0; it must be at most 1"),
        ("raserec_pretrained", {"encoder": "lstm"}, "encoder is lstm; it must be 'sasrec', 'gru4rec' or 'bert4rec'"),
        ("raserec_pretrained", {"dim": 9, "heads": 2}, "dim = 9 is not a multiple of heads = 2"),
        ("memory_bank", {"time_cut": True, "index": "hnsw"}, "time_cut needs exact search; set index = flat"),
        ("recommendations", {"top_n": 0}, "top_n is 0; it must be at least 1"),
    ],
)
def test_refused_settings_are_named_before_anything_is_read(plant, launches, asset, settings, message):
    result = plant.run("borrowed", only=[asset], **{asset: settings})
    assert list(failures(result)) == [asset]
    assert failures(result)[asset].startswith(f"settings of {asset} for borrowed: {message}")
    assert metadata(result) == {}
    assert launches == []


def test_a_setting_of_another_stage_is_refused_by_dagster(plant):
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "alpha"'):
        plant.run(only=["raserec_pretrained"], raserec_pretrained={"alpha": 0.5})


def test_settings_come_from_run_then_data_set_then_field(plant):
    spec = plant.spec("tiny")
    configuration = run_configuration("raserec_pretrained", PretrainSettings, StageConfig)
    settings = resolve(PretrainSettings, configuration(epochs=7), spec, "raserec_pretrained")
    assert settings.epochs == 7  # the run's
    assert settings.dim == 8  # the data set's
    assert settings.patience == 10  # the field's
    told = {one.setting: one for one in in_force(settings, spec, "raserec_pretrained")}
    assert [told[name].source for name in ("epochs", "dim", "patience")] == ["run", "data set", "default"]
    assert [told[name].value for name in ("epochs", "dim", "patience")] == [7, 8, 10]
    assert set(told) == set(PretrainSettings.model_fields)
    as_shown = resolve(PretrainSettings, configuration(epochs=2, patience=10), spec, "raserec_pretrained")
    told = {one.setting: one.source for one in in_force(as_shown, spec, "raserec_pretrained")}
    assert (told["epochs"], told["patience"]) == ("data set", "default")  # the launchpad's text changes nothing
    assert resolve(PretrainSettings, configuration(), spec, "raserec_pretrained").epochs == 2
    assert resolve(FinetuneSettings, StageConfig(), spec, "raserec_finetuned").memories == 5
