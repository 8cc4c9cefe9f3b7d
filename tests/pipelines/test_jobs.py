"""Jobs: which assets run together, and what is done by hand."""

import dagster as dg
from installations import OWN, installation
from plant import failures

from assets.framework.configuration import make_settings, with_defaults
from assets.framework.stage import STAGES
from pipelines.definitions import build_defs, usable_specs
from pipelines.jobs import TRACK_JOBS, cascade, dataset_partitions


def test_jobs_cover_their_groups(tmp_path):
    defs = build_defs(installation(tmp_path))
    graph = defs.resolve_asset_graph()
    everything = defs.resolve_job_def("everything").asset_layer.executable_asset_keys
    operations = {key for key in graph.materializable_asset_keys if graph.get(key).group_name == "operations"}
    apart = {key for key in graph.materializable_asset_keys if graph.get(key).group_name in ("sweeps", "peers")}
    assert set(everything) == set(graph.materializable_asset_keys) - operations - apart
    assert operations <= {
        key for job in cascade() for key in defs.resolve_job_def(job).asset_layer.executable_asset_keys
    }
    reports = {"raserec": "ranking_metrics", "rella": "ctr_metrics"}
    groups = {
        "raserec": {"raw", "sequences", "recommender", "baselines"},
        "rella": {"raw", "text", "semantic", "index", "instruction", "language", "baselines"},
    }
    assert set(TRACK_JOBS) == set(reports)
    for track in TRACK_JOBS:
        keys = set(defs.resolve_job_def(track).asset_layer.executable_asset_keys)
        expected = {key for key in everything if graph.get(key).group_name in groups[track]}
        expected = {key for key in expected if graph.get(key).tags["track"] in (track, "both")}
        assert keys == expected | {dg.AssetKey(reports[track])}


def test_the_launchpad_shows_what_a_person_changes_as_in_force_for_the_data_set(tmp_path):
    home = installation(tmp_path, OWN)
    defs = build_defs(home)

    def shown(job, dataset):
        return defs.resolve_job_def(job).partitioned_config.get_run_config_for_partition_key(dataset)["ops"]

    for dataset, spec in usable_specs(home.datasets).specs.items():
        for job in ("raserec", "rella", "finetune", "pretrain", "sweep"):
            for step, config in shown(job, dataset).items():
                stage = STAGES[step]
                given = cascade()[job].config.get(step, {}) if job in cascade() else {}
                usual = make_settings(stage.settings, with_defaults(given, spec.overrides, step, stage.defaults_of), "")
                assert config["config"] == usual.model_dump(mode="json", include=set(config["config"]))
    assert shown("rella", "ml-100k")["lora_checkpoint"]["config"]["learning_rate"] == 0.003  # the data set's
    assert shown("pretrain", "demo")["user_sequences"]["config"] == {"window_days": 7}  # the job's
    assert shown("refresh", "demo")["raserec_candidate"]["config"] == {"source": "refreshed"}


def test_the_launchpad_follows_the_file_of_the_data_set(tmp_path):
    home = installation(tmp_path, OWN)
    job = build_defs(home).resolve_job_def("raserec")
    (file,) = home.datasets.glob("own.toml")
    file.write_text(file.read_text() + "\n[overrides.raserec_pretrained]\nepochs = 3\n")
    now = job.partitioned_config.get_run_config_for_partition_key("own")["ops"]
    assert now["raserec_pretrained"]["config"]["epochs"] == 3
    file.write_text("nothing = [")
    assert job.partitioned_config.get_run_config_for_partition_key("own") == {"ops": {}}  # its run tells why


def test_jobs_without_a_training_load_the_code_once(tmp_path):
    """A process for each step would spend most of its time on loading the code."""
    defs = build_defs(installation(tmp_path))
    executors = {job.name: job.executor_def.name for job in defs.resolve_all_job_defs()}
    light = {name for name, executor in executors.items() if executor == dg.in_process_executor.name}
    assert light == {"ingest", "recommend", "drift", "refresh", "promote", "rollback", "demo", "clean"}


def test_the_jobs_that_an_engineer_expects(tmp_path):
    defs = build_defs(installation(tmp_path))
    jobs = {job.name: job for job in defs.resolve_all_job_defs()}
    expected = {
        "demo",
        "raserec",
        "rella",
        "everything",
        "ingest",
        "recommend",
        "drift",
        "drift_rella",
        "refresh",
        "finetune",
        "pretrain",
    }
    expected |= {
        "tune",
        "promote",
        "promote_rella",
        "rollback",
        "clean",
        "sweep",
        "sweep_rella",
        "peers",
        "peers_rella",
    }
    assert {name for name in jobs if not name.startswith("__")} == expected
    assert all(jobs[name].description for name in expected)


def test_the_demo_asks_for_no_choice(tmp_path):
    defs = build_defs(installation(tmp_path))
    with dg.DagsterInstance.ephemeral() as instance:
        # As the page launches it: without a partition, without configuration.
        launched = defs.resolve_job_def("demo").execute_in_process(instance=instance)
        (sensor,) = (one for one in defs.sensors if one.name == "start_demo")
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
        assert sensor.job_name == "everything"
        context = dg.build_run_status_sensor_context(
            sensor_name="start_demo",
            dagster_instance=instance,
            dagster_run=launched.dagster_run,
            dagster_event=launched.get_run_success_event(),
        )
        request = sensor(context)
    assert (request.partition_key, request.run_key) == ("demo", launched.run_id)


def test_data_sets_are_partitions_in_alphabetical_order():
    assert dataset_partitions({"ml-1m", "demo", "beauty"}).get_partition_keys() == ["beauty", "demo", "ml-1m"]


def test_the_cascade_sets_what_makes_each_step_that_step():
    """From cheap to expensive; only the last two hold back the newest days, on which a candidate is compared."""
    configs = {name: config for name, (_, _, config) in cascade().items() if config}
    assert configs == {
        "refresh": {"raserec_candidate": {"source": "refreshed"}},
        "finetune": {"raserec_candidate": {"source": "finetuned"}, "refreshed_memory": {"window_days": 7}},
        "pretrain": {"user_sequences": {"window_days": 7}},
    }


def test_a_track_that_is_none_cannot_be_rolled_back(tmp_path):
    job = build_defs(installation(tmp_path)).resolve_job_def("rollback")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key="demo", raise_on_error=False,
            run_config={"ops": {"roll_back": {"config": {"track": "rarec"}}}},
        )  # fmt: skip
    assert failures(result) == {"roll_back": "track is rarec; it must be one of 'raserec', 'rella'"}
