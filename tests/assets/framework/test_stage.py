"""A declaration is all that an asset needs, and what contradicts itself is refused when it is read."""

from pathlib import Path

import dagster as dg
import mlflow
import pytest
from plant import failures, metadata

from assets.framework import stage as framework
from assets.framework.configuration import InForce
from assets.framework.refusals import refuse_bad_input
from assets.framework.reuse import Outcome, settings_rows, shown_figure
from assets.framework.stage import STAGES, Job, check_declarations, stage, stage_of
from pipelines.definitions import build_defs
from rarec.config import Settings
from rarec.errors import InputError
from rarec.raserec.settings import PretrainSettings
from resources.workers.launcher import TrainingLauncher

TRACK = "tables"


class ToySettings(Settings):
    """Settings of the toy."""

    times: int = 1


class Forced(Settings):
    """Settings with a name that is taken."""

    force: bool = False


@pytest.fixture
def stages(monkeypatch):
    """The registry, put back afterwards."""
    kept = dict(STAGES)
    monkeypatch.setattr(framework, "STAGES", kept)
    return kept


def declare(stages, function, **changes):
    declaration = {"group": "baselines", "track": "raserec", "version": "1", "kinds": {"numpy"}}
    return stage(**{**declaration, **changes})(function)


def toy(job: Job[ToySettings]) -> Outcome:
    """A toy."""
    (job.folder / "x").write_text("x" * job.settings.times)
    return Outcome({"folder": job.folder.parent.name, "prepared": job.prepared}, metrics={"times": job.settings.times})


def run(plant, asset, **config):
    partitions = dg.StaticPartitionsDefinition(["tiny", "demo"])
    (bound,) = dg.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=partitions), [asset])
    return dg.materialize(
        [bound], partition_key="tiny", instance=plant.instance, resources=dict(plant.defs.resources),
        run_config={"ops": {"toy": {"config": config}}}, raise_on_error=False,
    )  # fmt: skip


def told(result):
    return metadata(result)["toy"]


def test_a_declaration_gives_the_asset_its_place_in_the_graph(stages):
    asset = declare(stages, toy, settings=ToySettings, inputs=("user_sequences",), after=("interactions",), trains=True)
    (spec,) = asset.specs
    assert {dep.asset_key.to_user_string() for dep in spec.deps} == {"user_sequences", "interactions"}
    assert (spec.group_name, spec.code_version, spec.kinds) == ("baselines", "1", {"numpy"})
    assert (spec.tags["track"], spec.tags["compute"]) == ("raserec", "training")
    assert spec.description == "A toy."
    (code,) = spec.metadata["dagster/code_references"].code_references
    assert Path(code.file_path).read_text().splitlines()[code.line_number - 1].startswith("def toy(")
    assert (asset.op.pool, asset.op.retry_policy.max_retries) == ("training", 3)
    assert set(asset.op.config_schema.config_type.fields) == {"force", "times"}
    assert asset.required_resource_keys >= {"store", "tracking", "workspace", "launcher"}
    check_declarations(stages)


def test_what_is_built_once_is_reused_until_its_identity_changes(stages, plant):
    asset = declare(stages, toy, settings=ToySettings, prepare=lambda request: f"for {request.dataset}")
    first = told(run(plant, asset, times=7))
    assert (first["reused"], first["prepared"], first["folder"]) == (False, "for tiny", ".staging")
    assert told(run(plant, asset, times=7))["reused"] is True
    assert told(run(plant, asset, times=7, force=True))["reused"] is False
    other = told(run(plant, asset, times=8))
    assert (other["reused"], other["fingerprint"] != first["fingerprint"]) == (False, True)


def test_the_settings_in_force_are_shown_in_dagster_and_in_mlflow(stages, plant):
    asset = declare(stages, toy, settings=ToySettings)
    expected = [{"setting": "times", "value": "9", "from": "run"}]
    for reused in (False, True):
        shown = told(run(plant, asset, times=9))
        assert shown["reused"] is reused
        assert [record.data for record in shown["settings in force"].records] == expected
        assert list(shown)[-3:] == ["reused", "artifact", "fingerprint"]  # what nobody looks for first
    client, run_id = mlflow.MlflowClient(plant.home.tracking_uri), Path(shown["mlflow_run"]).name
    table = client.load_table(client.get_run(run_id).info.experiment_id, "settings.json", [run_id])
    assert table.astype(str).to_dict("records") == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, 0.123456), (float("nan"), "none"), (float("inf"), "none"), (3, 3), ("x", "x")],
)
def test_figures_that_are_not_finite_are_shown_as_a_word(value, shown):
    assert shown_figure(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, "true"), ([], "none"), ([1, 2], "1, 2"), (None, "none"), ({"a": [0.5]}, "a: 0.5"), ("", "none")],
)
def test_settings_are_shown_in_words(value, shown):
    (row,) = settings_rows([InForce("x", value, "default")])
    assert row["value"] == shown


@pytest.mark.parametrize(
    ("what", "config", "inputs"),
    [
        ({}, {"times": 1}, {}),
        (
            {"extras": lambda request: {"title": request.spec.title}},
            {"times": 1, "title": "Tiny synthetic data set"},
            {},
        ),
        ({"config": lambda request: {"own": request.settings.times}}, {"own": 1}, {}),
        ({"versions": lambda request: {"file": "abc"}}, {"times": 1}, {"file": "abc"}),
    ],
)
def test_an_identity_is_of_settings_extras_and_versions(stages, plant, what, config, inputs):
    asset = declare(stages, toy, settings=ToySettings, **what)
    identity = told(run(plant, asset))["fingerprint"]
    manifest = plant.store.open("toy", "tiny", identity).manifest
    assert (manifest.config, manifest.inputs, manifest.code_version) == (config, inputs, "1")


def test_bad_input_in_prepare_stops_before_anything_is_recorded(stages, plant):
    def refuse(_request):
        raise InputError("row 3 is bad")

    assert failures(run(plant, declare(stages, toy, settings=ToySettings, prepare=refuse))) == {"toy": "row 3 is bad"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "new", "track": ""}, "group 'new' has no track; set track=, or add the group to TRACK_OF_GROUP"),
        ({"fingerprints": {"encoder": "raserec_pretrained"}}, "fingerprints= names raserec_pretrained, which is not"),
        ({"inputs": ("a",), "fingerprints": {"a": "a"}}, "fingerprints= would replace the data version of a"),
        ({"inputs": ("a",), "after": ("a",)}, "a is in inputs= and after="),
        ({"name": "memory_bank"}, "memory_bank is declared twice"),
        ({"name": "item_catalog"}, "item_catalog is declared twice"),
        ({"config": dict, "extras": dict}, "config= and extras=; config= is the whole configuration"),
        ({"parts": {"a": "A."}, "trains": True}, "parts= go neither with trains= nor with check_specs="),
        ({"makes_artifact": False, "extras": dict}, "makes_artifact=False, but an identity, parts or workers"),
        ({"makes_artifact": False, "trains": True}, "makes_artifact=False, but an identity, parts or workers"),
        ({"settings": Forced}, "a field `force`, which every artifact's run has"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(stages, changes, message):
    with pytest.raises(ValueError, match=message):
        declare(stages, toy, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("user_sequenses",)}, "stage toy: no stage builds the input 'user_sequenses'"),
        ({"after": ("nothing",)}, "stage toy: no stage builds the input 'nothing'"),
        ({"inputs": ("raserec_champion",)}, "stage toy: input 'raserec_champion' keeps no artifact; name it in after="),
        ({"defaults_of": "raserec_finetune"}, "stage toy: defaults_of='raserec_finetune' is no stage"),
        ({"track": "raserek"}, "stage toy: track='raserek' is no track; there are both, raserec, rella"),
        ({"champion": "rasrec"}, "stage toy: champion='rasrec' is no track"),
    ],
)
def test_declarations_are_compared_with_each_other(stages, changes, message):
    build_defs()  # all real stages are declared
    declare(stages, toy, **changes)
    with pytest.raises(ValueError, match=message):
        check_declarations(stages)


def test_a_stage_is_found_by_asset_also_one_with_several():
    assert stage_of("raserec_pretrained").settings is PretrainSettings
    assert stage_of("item_catalog").assets == ("interactions", "item_catalog", "user_profiles")


def test_a_stage_without_a_docstring_is_refused(stages):
    def silent(job):
        return Outcome()

    with pytest.raises(ValueError, match="stage silent: no docstring"):
        declare(stages, silent)
    assert "silent" not in stages


@pytest.mark.parametrize("precision", [True, False])
def test_the_precision_is_part_of_what_is_trained(stages, plant, precision):
    asset = declare(stages, toy, settings=ToySettings, trains=True, precision=precision, config=lambda _: {"own": 1})
    launcher = TrainingLauncher(engine={"precision": "bf16"})
    partitions = dg.StaticPartitionsDefinition(["tiny"])
    (bound,) = dg.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=partitions), [asset])
    resources = {**plant.defs.resources, "launcher": launcher}
    result = dg.materialize([bound], partition_key="tiny", instance=plant.instance, resources=resources)
    manifest = plant.store.open("toy", "tiny", told(result)["fingerprint"]).manifest
    assert manifest.config == {"own": 1, **({"precision": "bf16"} if precision else {})}


def test_a_run_without_a_data_set_is_told_to_choose_one(plant):
    result = plant.defs.resolve_job_def("rollback").execute_in_process(instance=plant.instance, raise_on_error=False)
    assert failures(result) == {"roll_back": "choose a data set (the partition) for this run"}


def test_bad_input_is_never_retried():
    @refuse_bad_input
    def asset():
        raise InputError("row 3 is bad")

    with pytest.raises(dg.Failure) as caught:
        asset()
    assert caught.value.description == "row 3 is bad"
    assert caught.value.allow_retries is False
