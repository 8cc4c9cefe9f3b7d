from pathlib import Path

import pytest
from pydantic import ValidationError

from rarec.errors import InputError
from rarec.training.engine_settings import EngineSettings
from resources.settings import Installation


def test_defaults_lie_in_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    installation = Installation.from_environment({})
    root = tmp_path / ".rarec"
    assert installation.root == root
    assert installation.data == root / "data"
    assert installation.artifacts == str(root / "artifacts")
    assert installation.incoming == str(root / "data")
    assert installation.tracking_uri == f"sqlite:///{root}/mlflow/mlflow.db"
    assert installation.mlflow_ui == "http://127.0.0.1:5000"
    assert installation.dagster_ui == "http://127.0.0.1:3000"
    assert (installation.scheduled, installation.schedule) == (("demo",), "0 3 * * 1")
    assert (installation.nproc, installation.nodes, installation.heartbeat_s) == (0, 1, 1800)
    assert installation.engine == EngineSettings()
    assert not root.exists()  # reading settings creates nothing


def test_without_a_checkout_the_default_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Installation.from_environment({}).root == tmp_path / ".rarec"


def test_environment_is_honoured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installation = Installation.from_environment(
        {
            "RAREC_HOME": "home",
            "RAREC_DATA": "../data",
            "RAREC_ARTIFACTS": "s3://bucket/rarec",
            "MLFLOW_TRACKING_URI": "http://mlflow:5000/",
            "RAREC_SCHEDULED": "demo, ml-1m,",
        }
    )
    assert installation.root == tmp_path / "home"
    assert installation.data == tmp_path.parent / "data"
    assert installation.incoming == str(installation.data)
    assert installation.artifacts == "s3://bucket/rarec"
    assert installation.mlflow_ui == "http://mlflow:5000"
    assert installation.scheduled == ("demo", "ml-1m")
    names = ("mlflow", "cache", "dagster", "work", "datasets")
    assert [getattr(installation, name) for name in names] == [installation.root / name for name in names]


@pytest.mark.parametrize(
    ("given", "place"),
    [("s3://bucket/new", "s3://bucket/new"), ("arrivals", "HERE/arrivals"), ("~/arrivals", "HERE/home/arrivals")],
)
def test_incoming_is_a_url_or_a_folder(tmp_path, monkeypatch, given, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Installation.from_environment({"RAREC_INCOMING": given}).incoming == place.replace("HERE", str(tmp_path))


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_value_counts_as_unset(tmp_path, empty):
    names = ("RAREC_DATA", "RAREC_NPROC", "RAREC_SCHEDULED", "MLFLOW_PORT", "DAGSTER_UI_URL", "RAREC_ZERO_STAGE")
    unset = Installation.from_environment({"RAREC_HOME": str(tmp_path)})
    assert Installation.from_environment({"RAREC_HOME": str(tmp_path), **dict.fromkeys(names, empty)}) == unset
    assert Installation.from_environment({"RAREC_HOME": empty}) == Installation.from_environment({})


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("RAREC_HOME", "/somewhere/rarec")
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example/")
    monkeypatch.setenv("DAGSTER_UI_URL", "https://dagster.example/")
    monkeypatch.setenv("DAGSTER_PORT", "3333")
    monkeypatch.setenv("engine", "not a variable of ours")
    installation = Installation.from_environment()
    assert installation == Installation()
    assert installation.root == Path("/somewhere/rarec")
    assert installation.mlflow_ui == "https://mlflow.example"
    assert installation.dagster_ui == "https://dagster.example"
    monkeypatch.delenv("DAGSTER_UI_URL")
    assert Installation.from_environment().dagster_ui == "http://127.0.0.1:3333"
    assert Installation.from_environment({}).dagster_port == 3000  # a mapping stands alone


def test_several_machines_and_heartbeat():
    variables = {
        "RAREC_HOSTFILE": "/shared/hostfile",
        "RAREC_REMOTE_SHELL": "ssh -p 2222",
        "RAREC_RENDEZVOUS": "trainer-0:29500",
        "RAREC_NODES": "4",
        "RAREC_HEARTBEAT": "0",
        "RAREC_WORKER_ENVIRONMENT": "LD_LIBRARY_PATH, TOKEN",
        "LD_LIBRARY_PATH": "/opt/lib",
        "TOKEN": "secret",
    }
    installation = Installation.from_environment(variables)
    assert installation.hostfile == "/shared/hostfile"
    assert installation.remote_shell == "ssh -p 2222"
    assert (installation.rendezvous, installation.nodes, installation.heartbeat_s) == ("trainer-0:29500", 4, 0)
    assert installation.worker_environment == ("LD_LIBRARY_PATH", "TOKEN")
    assert "secret" not in repr(installation)


def test_engine_fields_are_variables():
    installation = Installation.from_environment(
        {"RAREC_PRECISION": "bf16", "RAREC_OFFLOAD": "1", "RAREC_ZERO_STAGE": "3"}
    )
    assert installation.engine == EngineSettings(precision="bf16", offload=True, zero_stage=3)
    assert installation.engine.model_fields_set == {"precision", "offload", "zero_stage"}


def test_secrets_are_not_shown_and_settings_never_change():
    installation = Installation.from_environment({"RAREC_WEBHOOK": "https://hooks.example/secret"})
    assert "secret" not in repr(installation)
    with pytest.raises(ValidationError):
        installation.nproc = 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAREC_NODES": "two"}, "RAREC_NODES is two; it must be a whole number. Correct or unset it."),
        ({"RAREC_NODES": "0"}, "RAREC_NODES is 0; it must be at least 1. Correct or unset it."),
        ({"RAREC_NPROC": "2.5"}, "RAREC_NPROC is 2.5; it must be a whole number. Correct or unset it."),
        ({"RAREC_THREADS": "-1"}, "RAREC_THREADS is -1; it must be at least 0. Correct or unset it."),
        ({"RAREC_SETTLE": "a minute"}, "RAREC_SETTLE is a minute; it must be a whole number. Correct or unset it."),
        ({"MLFLOW_PORT": "70000"}, "MLFLOW_PORT is 70000; it must be at most 65535. Correct or unset it."),
        ({"DAGSTER_PORT": "0"}, "DAGSTER_PORT is 0; it must be at least 1. Correct or unset it."),
        (
            {"DAGSTER_PORT": "http", "RAREC_NPROC": "two"},
            "DAGSTER_PORT is http; it must be a whole number; RAREC_NPROC is two; it must be a whole number. Correct "
            "or unset it.",
        ),
        ({"RAREC_PRECISION": "int8"}, "RAREC_PRECISION is int8; it must be 'fp32', 'bf16' or 'fp16'. Correct or unset"),
        ({"RAREC_CHECKPOINT_MINUTES": "ten"}, "RAREC_CHECKPOINT_MINUTES is ten; it must be a number. Correct or unset"),
        ({"RAREC_OFFLOAD": "true"}, "RAREC_OFFLOAD needs ZeRO; set RAREC_ZERO_STAGE to 1, 2 or 3"),
        (
            {"RAREC_WORKER_ENVIRONMENT": "LD_LIBRARY_PATH,TOKEN", "TOKEN": "t"},
            "RAREC_WORKER_ENVIRONMENT names variables that are not set: LD_LIBRARY_PATH. Set them or remove their",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be_and_what_to_do(variables, message):
    with pytest.raises(InputError) as error:
        Installation.from_environment(variables)
    assert str(error.value).startswith(message)


def test_a_home_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(InputError) as error:
        Installation.from_environment({"RAREC_HOME": str(tmp_path / "home")})
    assert str(error.value) == f"RAREC_HOME: {tmp_path}/home is a file; set it to a folder"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "RAREC_DEEPSPEED is {file}, and there is no such file; correct or unset it."),
        ("{", "RAREC_DEEPSPEED is {file}, which cannot be read as JSON: "),
        ("[]", "RAREC_DEEPSPEED: {file} must hold a JSON object."),
        ('{"optimizer": {}}', "RAREC_DEEPSPEED: optimizer is set by RaRec; "),
    ],
)
def test_a_wrong_deepspeed_file_is_named(tmp_path, content, message):
    file = tmp_path / "own.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError) as error:
        Installation.from_environment({"RAREC_DEEPSPEED": str(file)})
    assert str(error.value).startswith(message.format(file=file))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("~nobody-of-this-name/x", r"^RAREC_HOME: ~nobody-of-this-name/x is not a path on this machine: Could not"),
        (
            "HERE/circle/x",
            r"^RAREC_HOME: .*/circle/x is not a path on this machine: Symlink loop from .*; set it to a full",
        ),
        (
            "HERE/a?b",
            r"^RAREC_HOME: .*/a\?b contains '\?', under which no SQLite database can be opened; choose a folder",
        ),
        ("HERE/file", r"^RAREC_HOME: .*/file is a file; set it to a folder$"),
    ],
)
def test_a_home_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, given, message):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        Installation.from_environment({"RAREC_HOME": given.replace("HERE", str(tmp_path))})


def test_a_checkout_under_a_folder_that_sqlite_cannot_open_needs_another_home(tmp_path, monkeypatch):
    checkout = tmp_path / "what?"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    with pytest.raises(InputError, match=r"^RAREC_HOME: .*/what\?/\.rarec contains '\?'"):
        Installation.from_environment({})


@pytest.mark.parametrize("name", ["a b", "ü", "a#b", "a[1]", "a::b"])
def test_a_home_may_have_any_other_name(tmp_path, name):
    home = Installation.from_environment({"RAREC_HOME": str(tmp_path / name)})
    assert home.root == tmp_path / name
    assert home.tracking_uri == f"sqlite:///{tmp_path}/{name}/mlflow/mlflow.db"


def test_deepspeeds_settings_may_begin_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "ds.json"
    file.write_bytes(b'\xef\xbb\xbf{"wall_clock_breakdown": true}')
    assert (
        Installation.from_environment({"RAREC_DEEPSPEED": str(file)}).engine.deepspeed["wall_clock_breakdown"] is True
    )
