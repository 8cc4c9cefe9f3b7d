"""The code location: its data sets, assets and resources, as an installation's settings want them."""

import logging
import subprocess
import sys

import dagster as dg
import pytest
from installations import OWN, installation
from places import child_environment

from assets.framework.stage import check_overrides
from pipelines.definitions import build_defs, default_resources, usable_specs
from rarec.data.spec import builtin_specs
from rarec.errors import InputError
from rarec.training.engine_settings import EngineSettings
from resources.mlflow.tracking import MlflowTracking
from resources.settings import Installation


def test_a_data_set_of_the_users_own_becomes_a_partition(tmp_path):
    graph = build_defs(installation(tmp_path, OWN)).resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert {"own", "demo"} <= set(graph.get(key).partitions_def.get_partition_keys())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "[overrides.raserec_pretraind]\ndim = 8",
            r"own.toml: \[overrides.raserec_pretraind\]: no such stage; .*ras",
        ),
        (
            "[overrides.raserec_finetuned]\nalhpa = 0.5",
            r"own.toml: \[overrides.raserec_finetuned\]: alhpa: no such s",
        ),
        (
            "[overrides.raserec_finetuned]\nalpha = 2.5",
            r"own.toml: \[overrides.raserec_finetuned\]: alpha is 2.5; it must be at most 1",
        ),
        ("[overrides.memory_bank]\nivf_lists = 4\nindex = 'ivf'", r"\[overrides.memory_bank\]: ivf_probes = 8 exceeds"),
        ("[own]\nkey = 1", "own.toml: own: no such setting"),
        ("k_core =", "own.toml: not valid TOML"),
    ],
)
def test_a_wrong_data_set_file_is_told_when_it_is_loaded_and_refused_when_it_is_used(
    tmp_path, caplog, overrides, message
):
    """The page names it, its runs fail with the reason, and other data sets can be used."""
    home = installation(tmp_path, OWN + overrides)
    with caplog.at_level(logging.WARNING, "rarec.datasets"):
        defs = build_defs(home)
    (told,) = caplog.messages
    assert told.startswith("warning: ")
    assert told.endswith(" Other data sets are not affected.")
    declared = usable_specs(home.datasets)
    with pytest.raises(InputError, match=message):
        declared.find("own")
    assert declared.find("demo").name == "demo"
    graph = defs.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert {"own", "demo"} <= set(graph.get(key).partitions_def.get_partition_keys())
        named = "**Not usable:** " in graph.get(key).description
        assert named == (graph.get(key).group_name == "raw"), key
    assert declared.faults["own"] in graph.get(dg.AssetKey("raw_interactions")).description
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("ingest").execute_in_process(
            instance=instance,
            partition_key="own",
            asset_selection=[dg.AssetKey("raw_interactions")],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    (failed,) = [event for event in result.get_step_failure_events() if event.step_key == "raw_interactions"]
    assert failed.step_failure_data.user_failure_data.description == declared.faults["own"]


def test_a_data_set_file_with_a_bad_name_is_named_on_the_page_without_a_partition(tmp_path):
    home = installation(tmp_path, OWN)
    (home.datasets / "My Shop.toml").write_text(OWN)
    node = build_defs(home).resolve_asset_graph().get(dg.AssetKey("raw_interactions"))
    assert set(node.partitions_def.get_partition_keys()) == builtin_specs().keys() | {"own"}
    assert f"**Not usable:** {home.datasets}/My Shop.toml: the file's name is the data set's" in node.description


def test_built_in_data_sets_can_be_used(tmp_path):
    assert usable_specs(tmp_path / "none").faults == {}
    for spec in builtin_specs().values():
        check_overrides(spec)


def test_resources_follow_the_environment_and_can_be_replaced(tmp_path):
    home = Installation.from_environment(
        {"RAREC_HOME": str(tmp_path), "RAREC_NPROC": "2", "RAREC_THREADS": "1", "RAREC_ARTIFACTS": "memory://store"}
    )
    tracking = MlflowTracking(tracking_uri="sqlite:///x.db", ui_url="http://ui", artifact_root="")
    resources = default_resources(home)
    assert (resources["launcher"].nproc, resources["launcher"].threads_per_process) == (2, 1)
    assert resources["store"].root == "memory://store"
    assert resources["workspace"].data == str(tmp_path.resolve() / "data")
    defs = build_defs(home, {"tracking": tracking})
    assert defs.resources["tracking"] is tracking
    assert "- `nproc`: 2" in defs.resources["launcher"].description.splitlines()


def test_the_launchpad_has_no_paths_of_the_machine(tmp_path):
    """Where things are is a matter of the environment; a run's configuration says what is computed."""
    defs = build_defs(installation(tmp_path))
    for job in defs.resolve_all_job_defs():
        shown = job.run_config_schema.run_config_schema_type.fields["resources"].default_value
        assert not [name for name, one in shown.items() if one.get("config")], job.name


def test_the_code_location_loads_no_library_that_it_does_not_use_yet(tmp_path):
    """Dagster loads it in every process, and these take seconds together."""
    heavy = ("matplotlib", "scipy.stats", "sklearn", "transformers", "peft", "deepspeed", "mlflow")
    code = f"import sys, pipelines.definitions; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=child_environment(RAREC_HOME=str(tmp_path)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "[]"


def test_several_machines_come_from_the_environment(tmp_path):
    variables = {"RAREC_RENDEZVOUS": "a", "RAREC_NODES": "2", "RAREC_HEARTBEAT": "60", "TOKEN": "secret-7"}
    variables |= {"RAREC_HOME": str(tmp_path), "RAREC_WORKER_ENVIRONMENT": "TOKEN"}
    launcher = default_resources(Installation.from_environment(variables))["launcher"]
    assert (launcher.rendezvous, launcher.nodes, launcher.heartbeat_s) == ("a", 2, 60)
    assert launcher.announced == str(tmp_path / "announced")  # where pipelines.join looks
    assert "secret-7" not in repr(launcher)
    assert launcher.environment["TOKEN"].get_value() is None  # Dagster reads it when a step starts


def test_deepspeed_comes_from_the_environment(tmp_path):
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 2}, "wall_clock_breakdown": true}')
    variables = {"RAREC_HOME": str(tmp_path), "RAREC_PRECISION": "bf16", "RAREC_CHECKPOINT_MINUTES": "2.5"}
    variables |= {"RAREC_DEEPSPEED": str(tmp_path / "own.json"), "RAREC_OFFLOAD": "true"}
    launcher = default_resources(Installation.from_environment(variables))["launcher"]
    engine = EngineSettings(**launcher.engine)
    assert (engine.precision, engine.stage, engine.offload, engine.checkpoint_minutes) == ("bf16", 2, True, 2.5)
    assert engine.configuration("cuda")["wall_clock_breakdown"] is True
    assert launcher.result_settings() == {"precision": "bf16"}
    assert default_resources(Installation.from_environment({}))["launcher"].result_settings() == {}
    for name, value, message in (
        (
            "RAREC_ZERO_STAGE",
            "3",
            r"RAREC_ZERO_STAGE is 3, but RAREC_DEEPSPEED sets stage 2; set only one \(RAREC_DEEPSPEED is .*own.json\)",
        ),
        ("RAREC_ZERO_STAGE", "5", "RAREC_ZERO_STAGE is 5; it must be at most 3"),
        ("RAREC_PRECISION", "int8", "RAREC_PRECISION is int8; it must be 'fp32', 'bf16' or 'fp16'"),
        ("RAREC_DEEPSPEED", str(tmp_path / "none.json"), r"RAREC_DEEPSPEED is .*none\.json, and there is no such file"),
    ):
        with pytest.raises(InputError, match=message):
            Installation.from_environment({**variables, name: value})
    (tmp_path / "own.json").write_text('{"optimizer": {}}')
    with pytest.raises(InputError, match="RAREC_DEEPSPEED: optimizer is set by RaRec; each stage has its own"):
        Installation.from_environment(variables)
    (tmp_path / "own.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        Installation.from_environment(variables)


def test_every_asset_tells_what_it_is_whose_and_of_which_track(tmp_path):
    graph = build_defs(installation(tmp_path)).resolve_asset_graph()
    tracks = {}
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert node.owners, key
        assert node.kinds, key
        assert (node.description or "").strip().endswith("."), key
        assert node.group_name != "default", key
        assert node.tags["compute"] in ("training", "light"), key
        tracks.setdefault(node.tags["track"], set()).add(key.to_user_string())
    assert tracks.keys() == {"raserec", "rella", "both"}
    assert {"interactions", "comparison_report"} <= tracks["both"]
    assert {"raserec_sweep", "ranking_metrics", "drift_report", "recommendations"} <= tracks["raserec"]
    assert {"ctr_metrics", "rella_drift_report", "lora_checkpoint", "item_index"} <= tracks["rella"]
    training = {
        key.to_user_string() for key in graph.materializable_asset_keys if graph.get(key).tags["compute"] == "training"
    }
    assert {"raserec_pretrained", "rella_sweep", "ctr_predictions"} <= training
    assert "interactions" not in training


def test_what_is_read_every_week_tells_when_it_is_late(tmp_path):
    defs = build_defs(installation(tmp_path))
    graph = defs.resolve_asset_graph()
    fresh = {
        key.to_user_string(): graph.get(key).freshness_policy
        for key in graph.materializable_asset_keys
        if graph.get(key).freshness_policy is not None
    }
    assert fresh.keys() == {"recommendations", "ranking_metrics", "ctr_metrics", "drift_report", "rella_drift_report"}
    for policy in fresh.values():  # later than the weekly schedules
        assert (policy.warn_window.to_timedelta().days, policy.fail_window.to_timedelta().days) == (8, 9)


def test_training_steps_share_one_pool(tmp_path):
    """Two trainings at once would share the same cores or GPU."""
    defs = build_defs(installation(tmp_path))
    pools = {name: defs.resolve_assets_def(name).op.pool for name in ("raserec_pretrained", "raserec_finetuned")}
    assert set(pools.values()) == {"training"}


def test_every_setting_is_described_where_it_is_typed(tmp_path):
    """The launchpad shows these texts beside the fields."""
    defs = build_defs(installation(tmp_path))
    for name in ("raserec_pretrained", "memory_bank", "raserec_finetuned", "recommendations"):
        fields = defs.resolve_assets_def(name).op.config_schema.config_type.fields
        assert len(fields) > 2
        for setting, field in fields.items():
            assert field.description, f"{name}.{setting}"
            assert not field.is_required
            assert setting == "force" or "Default: " in field.description


def test_definitions_are_loadable_as_a_whole(tmp_path):
    dg.Definitions.validate_loadable(build_defs(installation(tmp_path, OWN)))
