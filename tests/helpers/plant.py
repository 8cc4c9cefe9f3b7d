"""A whole installation in a temporary folder: tiny data sets, their definitions, and runs of them in this process.

What takes trainings is built once in a process and copied for each file of tests: see `Plant.copy` and the fixtures of
`tests/assets/conftest.py`.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
from golden import check_keys

import assets.data.clean
from pipelines.definitions import build_defs, default_resources
from rarec.data.spec import DatasetSpec
from resources.artifacts.identity import fingerprint
from resources.artifacts.store import Artifact, ArtifactStore
from resources.settings import MLFLOW_DATABASE, Installation
from resources.workspace import Workspace

REPOSITORY = Path(assets.data.clean.__file__).parents[2]
# One step of Dagster may make several assets.
STEPS = dict.fromkeys(("interactions", "item_catalog", "user_profiles"), "clean_tables")

# Loads a logged model where neither this repository nor Dagster is at hand; what is asked of ``model`` follows.
LOADS_ALONE = """
import json, sys
repository = sys.argv[3]
sys.path = [place for place in sys.path if place not in ("", repository)]
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import pandas as pd
import rarec
assert not rarec.__file__.startswith(repository), rarec.__file__
assert "dagster" not in sys.modules
"""


class Plant:
    """One installation and its Dagster instance."""

    def __init__(self, root: Path, instance: dg.DagsterInstance, **datasets: str) -> None:
        self.home = Installation.from_environment(
            {
                "RAREC_HOME": str(root),
                "RAREC_DATA": str(root / "data"),
                "RAREC_NPROC": "1",
                "RAREC_THREADS": "1",
                "RAREC_SETTLE": "0",
            }
        )
        self.home.datasets.mkdir(parents=True, exist_ok=True)
        for name, text in datasets.items():
            (self.home.datasets / f"{name}.toml").write_text(text.format(name=name))
        self.instance = instance
        self.defs = build_defs(self.home)
        self.store = ArtifactStore(root=self.home.artifacts, cache=str(self.home.cache))
        self.tracking = default_resources(self.home)["tracking"]

    def copy(self, root: Path, instance: dg.DagsterInstance, **datasets: str) -> "Plant":
        """The same installation elsewhere: artifacts, MLflow, and in ``instance`` every materialisation so far."""
        shutil.copytree(self.home.root, root, dirs_exist_ok=True)
        database = root / "mlflow" / MLFLOW_DATABASE
        if database.exists():
            _rename(database, str(self.home.root), str(root))
        events = [
            record
            for key in self.instance.all_asset_keys()
            for record in self.instance.fetch_materializations(key, limit=1000).records
        ]
        for record in sorted(events, key=lambda record: record.storage_id):
            instance.report_runless_asset_event(record.asset_materialization)
        return Plant(root, instance, **datasets)

    def spec(self, name: str) -> DatasetSpec:
        workspace = Workspace(data="", datasets=str(self.home.datasets), cache="", work="", ledgers="")
        return workspace.spec(name)

    def run(self, dataset="tiny", only=(), resources=None, track="raserec", **config) -> dg.ExecuteInProcessResult:
        """Run every asset of a track, or ``only`` some; ``config`` is asset -> settings."""
        defs = self.defs if resources is None else build_defs(self.home, resources)
        ops = {STEPS.get(asset, asset): {"config": values} for asset, values in config.items()}
        result = defs.resolve_job_def(track).execute_in_process(
            instance=self.instance,
            partition_key=dataset,
            asset_selection=[dg.AssetKey(name) for name in only] or None,
            run_config={"ops": ops, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
        check_keys(self, result)
        return result

    def artifact(self, result: dg.ExecuteInProcessResult, asset: str) -> Artifact:
        """The artifact that this run materialised or reused."""
        (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key.to_user_string() == asset]
        return self.store.open(asset, event.partition, str(event.materialization.metadata["fingerprint"].value))

    def put(self, asset: str, dataset: str, files: Path, values: dict, inputs: dict[str, str] | None = None) -> str:
        """Make it look as if ``asset`` had been materialised with copies of these files; gives its identity."""
        config = {"copied": values}
        inputs = inputs or {}
        identity = fingerprint(asset, "1", config, inputs)
        with self.store.write(asset, dataset, identity, inputs=inputs, config=config, code_version="1") as draft:
            shutil.copytree(files, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
            draft.metadata.update(values=values, markdown={}, files={}, mlflow_run="")
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=dataset, metadata={"fingerprint": identity})
        )
        return identity

    def ask_alone(self, model: str, code: str, request: object, cwd: Path) -> Any:
        """What ``code`` prints last, as JSON, of the MLflow model ``model``, with ``request`` on its standard input."""
        process = subprocess.run(
            [sys.executable, "-c", LOADS_ALONE + code, self.home.tracking_uri, model, str(REPOSITORY)],
            input=json.dumps(request), cwd=cwd, capture_output=True, text=True, timeout=200, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])


def _rename(database: Path, old: str, new: str) -> None:
    """Let every path in an SQLite file that lies below ``old`` lie below ``new``."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            for column in [row[1] for row in connection.execute(f'pragma table_info("{table}")')]:
                update = f'update "{table}" set "{column}" = replace("{column}", ?, ?) where "{column}" like ?'
                connection.execute(update, (old, new, f"%{old}%"))


def materialised(result: dg.ExecuteInProcessResult) -> dict[str, dict]:
    """Asset -> metadata of what this run materialised, plain values."""
    return {
        event.asset_key.to_user_string(): {k: v.value for k, v in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
    }


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict]:
    """The same, but for the ledger, which is no artifact."""
    return {asset: values for asset, values in materialised(result).items() if asset != "incoming_interactions"}


def built(result: dg.ExecuteInProcessResult) -> set[str]:
    """Assets that this run built, as opposed to reused."""
    return {name for name, values in metadata(result).items() if not values["reused"]}


def failures(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Step -> message of each failed step that failed with an explanation; an unexplained failure is an error."""
    messages = {}
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        assert data.user_failure_data is not None, data.error.to_string()
        messages[event.step_key] = data.user_failure_data.description
    assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)
    return messages


def failed_checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dict]:
    """(asset, check) -> details of each check that did not pass."""
    return {
        (check.asset_key.to_user_string(), check.check_name): {k: v.value for k, v in check.metadata.items()}
        for check in result.get_asset_check_evaluations()
        if not check.passed
    }
