"""Bad input and settings: one clear message from the asset, no retry, nothing after it, and no training before it."""

import socket

import dagster as dg
import pytest
from plant import OWN_FILES, STEPS, TINY, Plant, failures, metadata

from assets.framework.configuration import StageConfig, resolve, run_configuration
from assets.framework.reuse import markdown_table
from assets.framework.stage import refuse_bad_input
from rarec.errors import InputError
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher

FEW = "user_id:token\titem_id:token\ttimestamp:float\na\tx\t1\na\ty\t2\na\tz\t3\nb\tx\t4\nb\ty\t5\n"


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(tmp_path_factory.mktemp("plant"), instance, tiny=TINY, short=OWN_FILES, absent=OWN_FILES)


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    def launch(*_, **__):
        raise AssertionError("a training worker was launched")

    monkeypatch.setattr(TrainingLauncher, "launch", launch)


def only_failure(result: dg.ExecuteInProcessResult) -> tuple[str, str]:
    (failure,) = failures(result).items()
    return failure


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
def test_refused_settings_are_named_before_anything_is_read(plant, asset, settings, message):
    result = plant.run(only=[asset], **{asset: settings})
    step, text = only_failure(result)
    assert step == asset
    assert text.startswith(f"settings of {asset} for tiny: {message}")
    assert metadata(result) == {}


def test_a_setting_of_another_stage_is_refused_by_dagster(plant):
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "alpha"'):
        plant.run(only=["raserec_pretrained"], raserec_pretrained={"alpha": 0.5})


def test_assets_ask_for_what_they_need(plant):
    result = plant.run(only=["user_sequences"])
    assert only_failure(result) == (
        "user_sequences",
        "interactions has not been materialised for tiny; materialise it first "
        "(job `raserec` or `rella`: make run DATASET=tiny TRACK=raserec)",
    )


@pytest.mark.parametrize(
    ("track", "asset", "message"),
    [
        (
            "raserec",
            "ranking_metrics",
            "user_sequences has not been materialised for tiny; materialise it first "
            "(job `raserec`: make run DATASET=tiny TRACK=raserec)",
        ),
        (
            "promote_rella",
            "rella_candidate",
            "lora_checkpoint has not been materialised for tiny; materialise it first "
            "(job `rella`: make run DATASET=tiny TRACK=rella)",
        ),
        (
            "promote",
            "raserec_champion",
            "raserec_candidate has not been materialised for tiny; materialise it first",
        ),
    ],
)
def test_what_is_missing_names_the_job_that_makes_it(plant, track, asset, message):
    assert only_failure(plant.run(track=track, only=[asset])) == (asset, message)


def test_a_run_without_a_data_set_is_told_to_choose_one(plant):
    result = plant.defs.resolve_job_def("rollback").execute_in_process(instance=plant.instance, raise_on_error=False)
    assert only_failure(result) == ("roll_back", "choose a data set (the partition) for this run")


def test_users_with_too_few_interactions_are_named(plant):
    folder = plant.home.data / "short"
    folder.mkdir(parents=True)
    (folder / "short.inter").write_text(FEW)
    result = plant.run("short")
    step, text = only_failure(result)
    assert step == "user_sequences"
    assert text.startswith("1 users have fewer than three interactions (first: user 'b' with 2)")
    assert set(metadata(result)) == {"raw_interactions", *STEPS}


def test_absent_files_are_listed(plant):
    step, text = only_failure(plant.run("absent"))
    assert step == "raw_interactions"
    assert f"Put absent.inter into {plant.home.data / 'absent'}" in text


def test_a_tracking_server_that_is_away_is_told_before_the_work(plant):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    tracking = MlflowTracking(tracking_uri=uri, ui_url=uri, artifact_root="")
    result = plant.run(resources={"tracking": tracking}, raw_interactions={"force": True})
    step, text = only_failure(result)
    assert step == "raw_interactions"
    assert text.startswith(f"MLflow at {uri} cannot be used")


def test_bad_input_is_never_retried():
    @refuse_bad_input
    def asset():
        raise InputError("row 3 is bad")

    with pytest.raises(dg.Failure) as caught:
        asset()
    assert caught.value.description == "row 3 is bad"
    assert caught.value.allow_retries is False


def test_settings_come_from_run_then_data_set_then_field(plant):
    spec = plant.spec("tiny")
    configuration = run_configuration("raserec_pretrained", PretrainSettings, StageConfig)
    settings = resolve(PretrainSettings, configuration(epochs=7), spec, "raserec_pretrained")
    assert settings.epochs == 7  # the run's
    assert settings.dim == 8  # the data set's
    assert settings.patience == 10  # the field's
    assert resolve(PretrainSettings, configuration(), spec, "raserec_pretrained").epochs == 2
    assert resolve(FinetuneSettings, StageConfig(), spec, "raserec_finetuned").memories == 5


def test_tables_in_metadata_keep_their_cells_apart():
    pd = pytest.importorskip("pandas")
    text = markdown_table(pd.DataFrame({"a": ["x|y", "line\nbreak"], "b": [1, 2]}))
    assert text == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n| line break | 2 |"
