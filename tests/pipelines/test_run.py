import shutil
import sqlite3
import subprocess
import sys

import dagster as dg
import pytest
from places import ROOT

from pipelines.definitions import build_defs, default_resources
from pipelines.jobs import cascade
from pipelines.run import _prepare, main
from rarec.errors import InputError
from resources.artifacts.identity import fingerprint
from resources.settings import Installation

BANK = fingerprint("memory_bank", "1", {}, {})


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("RAREC_DATA", "RAREC_NPROC", "RAREC_THREADS", "RAREC_ARTIFACTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("track", cascade())
def test_a_job_keeps_its_own_configuration_beside_what_is_given(track, tmp_path):
    """Else `make run TRACK=refresh` would compare the model trained last, not the refreshed one."""
    home = Installation.from_environment({"RAREC_HOME": str(tmp_path)})
    job, config = _prepare("demo", track, '{"incoming_interactions": {}}' if track == "ingest" else "{}", home)
    assert job.name == track
    for asset, settings in cascade()[track].config.items():
        assert config["ops"][asset]["config"] == settings
    if track == "finetune":
        _, config = _prepare("demo", track, '{"raserec_candidate": {"tolerance": 0.5}}', home)
        assert config["ops"]["raserec_candidate"]["config"] == {"source": "finetuned", "tolerance": 0.5}
        assert cascade()[track].config["raserec_candidate"] == {"source": "finetuned"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"track": "rasrec"},
            "error: unknown TRACK 'rasrec' (did you mean 'raserec'?); known: clean, drift, drift_rella, everything, ",
        ),
        ({"track": "demo"}, "error: unknown TRACK 'demo'"),  # its sensor would do what `everything` does
        ({"dataset": "ml-100"}, "error: Unknown data set 'ml-100' (did you mean 'ml-100k'?); known: amazon-beauty,"),
        ({"config": "{alpha: 1}"}, "error: CONFIG is not JSON: Expecting property name"),
        ({"config": "[]"}, "error: CONFIG must be an object of settings by asset, not []. Example: CONFIG="),
        ({"config": '{"raserec_finetuned": 3}'}, "error: CONFIG must be an object of settings by asset, not {"),
        (
            {"config": '{"finetuned": {}}'},
            "error: CONFIG: TRACK=everything has no asset 'finetuned' (did you mean 'raserec_finetuned'?)",
        ),
        (
            {"config": '{"raserec_finetuned": {"alpha": 2}}'},
            "error: CONFIG: raserec_finetuned: alpha is 2; it must be at most 1",
        ),
        (
            {"config": '{"raserec_finetuned": {"dim": 2}}'},
            "error: CONFIG: raserec_finetuned: dim: no such setting; known: learning_rate, epochs, patience, schedule,",
        ),
        (
            {"config": '{"item_catalog": {"k": 2}}'},
            "error: CONFIG: item_catalog: k: no such setting; known: force",
        ),
        # On demo `max_length` is 16: the data set's own defaults count.
        (
            {"config": '{"raserec_pretrained": {"context_stride": 17}}'},
            "error: CONFIG: raserec_pretrained: context_stride = 17 exceeds max_length = 16",
        ),
        (
            {"config": '{"raw_interactions": {"force": "maybe"}}'},
            'error: CONFIG: Invalid scalar at path root:ops:raw_interactions:config:force. Value "maybe"',
        ),
    ],
)
def test_wrong_arguments_end_with_one_line_before_anything_runs(arguments, message, tmp_path):
    defaults = {"dataset": "demo", "track": "everything", "config": "{}"}
    with pytest.raises(SystemExit) as caught:
        main(**{**defaults, **arguments})
    text = str(caught.value)
    assert text.startswith(message)
    assert "\n" not in text
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("track", "config", "message"),
    [
        ("clean", '{"clean": {}}', "TRACK=clean has no step 'clean' (did you mean 'clean_up'?); it has clean_up"),
        ("clean", '{"clean_up": {"day": 3}}', "clean_up: day: no such setting (did you mean 'days'?); known: days, ve"),
        ("clean", '{"clean_up": {"days": 0}}', "clean_up: days is 0; it must be greater than 0"),
        ("rollback", '{"roll_back": {"version": "two"}}', "roll_back: version is two; it must be a whole number"),
        ("rollback", '{"raserec_champion": {}}', "TRACK=rollback has no step 'raserec_champion'; it has roll_back"),
    ],
)
def test_wrong_settings_of_jobs_of_one_step_are_told(track, config, message):
    with pytest.raises(SystemExit) as caught:
        main("demo", track, config)
    assert str(caught.value).startswith(f"error: CONFIG: {message}")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The code location of this test's home, where two versions of demo's model were champion, and an old artifact."""
    home = Installation.from_environment()
    monkeypatch.setattr("pipelines.definitions.defs", build_defs(home))
    resources = default_resources(home)
    registry = resources["tracking"].registry("raserec", "demo")
    registry._client.create_registered_model(registry.name)
    for _ in range(2):
        registry._client.create_model_version(registry.name, "here", tags={"rarec.artifacts": "{}"})
        registry.promote(registry.versions()[-1])
    made_of = {"inputs": {}, "config": {}, "code_version": "1"}
    with resources["store"].write("memory_bank", "demo", BANK, **made_of) as draft:
        (draft.path / "bank.npy").write_bytes(b"1")
    return resources["store"], registry


def test_a_rollback_tells_what_serves_now_and_a_second_one_fails_in_one_line(planted, capsys):
    _, registry = planted
    main("demo", "rollback", '{"roll_back": {"track": "raserec"}}')
    assert registry.champion().number == 1
    lines = capsys.readouterr().out.splitlines()
    assert "raserec_champion: version 1 now serves; before: version 2; rolled back" in lines
    assert any(line.startswith("demo rollback: done in ") and "assets" not in line for line in lines)
    assert any(line.startswith("lists:  make run DATASET=demo TRACK=recommend ") for line in lines)
    with pytest.raises(SystemExit) as caught:
        main("demo", "rollback", "{}")
    first, second = str(caught.value).splitlines()
    assert first.startswith("error: roll_back: rarec-demo-raserec has no version before the champion")
    assert second.startswith("Details: make ui")


def test_clean_tells_its_verdicts_first_and_deletes_when_told(planted, capsys):
    store, _ = planted
    for dry_run, word, left in (("true", "would go", 1), ("false", "gone", 0)):
        main("ml-100k", "clean", f'{{"clean_up": {{"days": 1e-9, "dry_run": {dry_run}}}}}')
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "all data sets, clean: starting"
        start = next(place for place, line in enumerate(lines) if line.startswith("what"))
        assert lines[start + 2] == f"memory_bank/demo/{BANK}  0.0  {word}"
        assert f"clean_up: {word}: 1, MiB: 0.0, kept: 0" in lines
        assert any(line.startswith("all data sets clean: done in ") for line in lines)
        assert len(list(store.manifests())) == left


def test_make_help_lists_all_that_track_may_be(tmp_path):
    with pytest.raises(InputError) as caught:
        _prepare("demo", "no such", "{}", Installation.from_environment({"RAREC_HOME": str(tmp_path)}))
    known = str(caught.value).split("known: ")[1].split(", ")
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (listed,) = [line for line in shown.splitlines() if line.startswith("TRACK:")]
    assert sorted(listed.removeprefix("TRACK:").replace(";", ",").replace(" ", "").split(",")) == known


def test_wrong_environment_ends_with_one_line(monkeypatch):
    monkeypatch.setenv("RAREC_NPROC", "two")
    with pytest.raises(
        SystemExit, match=r"^error: RAREC_NPROC is two; it must be a whole number\. Correct or unset it\.$"
    ):
        main("demo", "everything", "{}")


OWN = """
name = "own"
title = "Own"
domain = "books"

[[sources]]
format = "recbole"

[overrides.raserec_pretraining]
dim = 8
"""


def test_the_command_ends_with_one_line_and_a_code(tmp_path):
    """As a user runs it, with a data set file that is refused."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "own.toml").write_text(OWN)
    command = [sys.executable, "-m", "pipelines.run", "--dataset", "own"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert process.returncode == 1
    assert process.stdout == "own, everything: starting\n"
    assert process.stderr.startswith("error: own.toml: [overrides.raserec_pretraining]: no such stage; stages with set")
    assert process.stderr.count("\n") == 1


def test_a_wrong_data_set_file_is_a_warning_for_other_data_sets(tmp_path, capsys):
    home = Installation.from_environment()
    home.datasets.mkdir()
    (home.datasets / "own.toml").write_text(OWN)
    (home.datasets / "My Shop.toml").write_text(OWN)
    _prepare("demo", "raserec", "{}", home)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {home.datasets}/My Shop.toml: the file's name is the data set's; ")
    assert second.startswith("warning: own.toml: [overrides.raserec_pretraining]: no such stage; ")
    assert first.endswith(" Other data sets are not affected.")
    with pytest.raises(InputError, match=r"^own\.toml: \[overrides\.raserec_pretraining\]: no such stage"):
        _prepare("own", "raserec", "{}", home)
    assert len(capsys.readouterr().err.splitlines()) == 1  # the error tells the other one


@pytest.mark.parametrize(
    ("track", "fields", "message"),
    [
        (
            "everything",
            "",
            "own: TRACK=everything predicts what users like, but the data set's file has no `label_threshold`; set it "
            "and `rating_scale`. Or run TRACK=raserec, which needs neither ratings nor prompts.",
        ),
        (
            "rella",
            "",
            "own: TRACK=rella predicts what users like, but the data set's file has no `label_threshold`; set ",
        ),
        (
            "everything",
            'rating_scale = [1, 5]\nlabel_threshold = 3\ndomain = "tea"',
            "own: there is no prompt template",
        ),
    ],
)
def test_what_a_job_would_miss_after_hours_is_told_at_once(track, fields, message):
    home = Installation.from_environment()
    home.datasets.mkdir()
    domain = "" if "domain" in fields else 'domain = "products"\n'
    (home.datasets / "own.toml").write_text(
        f'name = "own"\ntitle = "Own"\n{domain}{fields}\n[[sources]]\nformat = "table"\n'
    )
    with pytest.raises(InputError) as caught:
        _prepare("own", track, "{}", home)
    assert str(caught.value).startswith(message)
    _prepare("own", "raserec", "{}", home)


def test_checks_that_only_warn_are_no_causes_of_a_failure(tmp_path, monkeypatch, capsys):
    home = Installation.from_environment()
    home.datasets.mkdir()
    (home.datasets / "own.toml").write_text(
        'name = "own"\ntitle = "Own"\ndomain = "products"\nquarantine_limit = 0.5\nshort_users = "error"\n'
        '[[sources]]\nformat = "table"\nfiles = {interactions = "own.csv"}\n'
    )
    (tmp_path / "data" / "own").mkdir(parents=True)
    (tmp_path / "data" / "own" / "own.csv").write_text("user,item,time\nu,i,1600000000\n,j,1600000000\n")
    monkeypatch.setenv("RAREC_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("pipelines.definitions.defs", build_defs(Installation.from_environment()))
    with pytest.raises(SystemExit) as caught:
        main("own", "ingest", "{}")
    assert str(caught.value).startswith("error: user_sequences: 1 users have fewer than three interactions")
    out = capsys.readouterr().out
    assert "\nwarning: raw_interactions: check rows_set_aside failed: rows: 1; " in out
    assert "  1 interactions of 1 users and 1 items remain\n" in out


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("RAREC_HOME", str(tmp_path / "new" / "home"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SystemExit) as caught:
        main("demo", "everything", "{}")
    assert str(caught.value) == (
        f"error: RAREC_HOME is {tmp_path}/new/home, where 1.4 MB are free; at least 100 MB are needed. Free some "
        "space, or set RAREC_HOME to a folder on a larger disk."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["get", "handle_new_event"])
def test_a_disk_that_fills_up_under_dagsters_storage_is_told_in_one_line(tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(dg.DagsterInstance, where, full)
    with pytest.raises(SystemExit) as caught:
        main("demo", "ingest", "{}")
    text = str(caught.value)
    assert text.startswith("error: Disk full: ")
    assert text.endswith("to a folder on a larger disk, and run again.")
    assert "\n" not in text


def test_a_wrong_setting_in_dagster_yaml_is_told_in_one_line(tmp_path):
    (tmp_path / "dagster.yaml").write_text("run_monitorin: {enabled: true}\n")
    with pytest.raises(SystemExit) as caught:
        main("demo", "ingest", "{}")
    text = str(caught.value)
    assert text.startswith(f"error: Dagster refuses {tmp_path}/dagster.yaml: ")
    assert "run_monitorin" in text
    assert "\n" not in text
