"""MLflow: one run per materialisation. Dagster and MLflow link to each other.

Every call goes through MlflowClient with an explicit run id, never through MLflow's active run, so that assets that run
side by side do not mix.
"""

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import requests
from pydantic import Field

from rarec.errors import InputError
from resources.mlflow import advice
from resources.mlflow.outbox import Outbox
from resources.mlflow.registry import PREFIX, ModelRegistry
from resources.mlflow.run_history import ListedRun, newest_runs
from resources.mlflow.tracked_run import CODE_VERSION, FINGERPRINT, TrackedRun
from resources.settings import MLFLOW_DATABASE

if TYPE_CHECKING:  # mlflow takes seconds to import, so it is imported when a run starts
    from mlflow import MlflowClient

CHECK_TIMEOUT_S = 5.0

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that goes away during a run must not hold up the training for minutes; the outbox keeps what fails.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class MlflowTracking(dg.ConfigurableResource):
    """Where runs are recorded: on a tracking server or in an embedded database."""

    tracking_uri: str = Field(description="MLflow tracking URI: sqlite:///..., http://...")
    ui_url: str = Field(description="Address of the MLflow page that links in Dagster point to.")
    artifact_root: str = Field(description="Folder of run artifacts if no tracking server decides where they go.")
    experiment: str = Field(default="rarec", description="MLflow experiment that holds all runs.")
    wait_s: float = Field(
        default=120,
        ge=0,
        description="Seconds that finished work waits, in total, for a server that went away. The asset's metadata "
        "lists what could not be recorded.",
    )

    def check(self) -> str:
        """Check within seconds that runs can be recorded; returns the experiment id, or raises InputError."""
        try:
            if self._has_server:
                # A server with an untrusted certificate does answer; MLflow's own TLS settings decide about it later.
                with suppress(requests.exceptions.SSLError):
                    requests.get(f"{self.tracking_uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_S)
            with self._database_lock():
                self._make_database()
                return self._experiment_id()
        except InputError:
            raise
        except Exception as error:  # MLflow, requests, SQLAlchemy and the file system each raise their own
            raise self._unusable(error) from error

    @contextmanager
    def run(
        self,
        context: dg.AssetExecutionContext,
        asset: str,
        partition: str,
        fingerprint: str,
        code_version: str,
        params: Mapping[str, Any],
    ) -> Iterator[TrackedRun]:
        """Record one materialisation. The run ends as FAILED on an exception and as KILLED on an interrupt.

        Open it before the work starts: it raises InputError at once if MLflow cannot be used. Afterwards a server that
        goes away fails nothing; `TrackedRun.lost` says what could not be recorded.
        """
        experiment_id = self.check()
        client = self._client()
        tags = {
            "dagster.run_id": context.run.run_id,
            "dagster.asset_key": asset,
            "dagster.partition": partition,
            FINGERPRINT: fingerprint,
            CODE_VERSION: code_version,
        }
        page = self._page(experiment_id)
        outbox = Outbox(context.log, self.wait_s)
        tracked = TrackedRun(client, experiment_id, f"{asset} {partition} {fingerprint[:8]}", tags, page, outbox)
        try:
            tracked.create()
        except Exception as error:
            raise self._unusable(error) from error
        try:
            with tracked.recording(params):
                yield tracked
            outbox.drain()  # not after a failure or a cancel: somebody is waiting for its outcome
        finally:
            outbox.give_up()
            if tracked.lost:
                context.log.error(f"Not recorded in MLflow run {tracked.run_id}: {tracked.lost}")

    def registry(self, track: str, dataset: str) -> ModelRegistry:
        """The model registry of one data set and track; raises InputError if MLflow cannot be used."""
        self.check()
        return ModelRegistry(self._client(), track, dataset)

    def registries(self) -> list[ModelRegistry]:
        """The model registry of every data set and track that has one; raises InputError if MLflow cannot be used."""
        self.check()
        client, found, token = self._client(), [], None
        while token != "":
            page = client.search_registered_models(f"name LIKE '{PREFIX}%'", page_token=token)
            found += [model.name.removeprefix(PREFIX).rpartition("-") for model in page]
            token = page.token or ""
        return [ModelRegistry(client, track, dataset) for dataset, _, track in found if dataset]

    def newest_runs(self) -> list[ListedRun]:
        """The newest runs, newest first; raises InputError if MLflow cannot be used."""
        experiment_id = self.check()
        try:
            return newest_runs(self._client(), experiment_id)
        except Exception as error:
            raise self._unusable(error) from error

    def _page(self, experiment_id: str) -> str:
        return f"{self.ui_url.rstrip('/')}/#/experiments/{experiment_id}/runs/"

    def _unusable(self, error: Exception) -> InputError:
        return advice.unusable(self.tracking_uri, error, "RAREC_HOME" if self._is_embedded else "MLFLOW_TRACKING_URI")

    @property
    def _own_place(self) -> Path:
        return Path(self.artifact_root).expanduser().absolute()

    @property
    def _is_embedded(self) -> bool:
        return self.tracking_uri == f"{advice.SQLITE}{self._own_place.with_name(MLFLOW_DATABASE)}"

    @property
    def _has_server(self) -> bool:
        return self.tracking_uri.startswith(("http://", "https://"))

    @contextmanager
    def _database_lock(self) -> Iterator[None]:
        """Let one process in at a time: MLflow fails if two create the tables of a new sqlite file."""
        if not self.tracking_uri.startswith(advice.SQLITE):
            yield
            return
        database = advice.database(self.tracking_uri)
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(database.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_database(self) -> None:
        """Make the embedded store beside its place if there is none: MLflow cannot go on with half of its tables."""
        file = advice.database(self.tracking_uri)
        if not self._is_embedded or file.exists():
            return
        for left in file.parent.glob(f"{file.name}.*.new"):  # of a process that was killed
            left.unlink()
        beside = file.with_name(f"{file.name}.{uuid.uuid4().hex}.new")  # a new name, as MLflow keeps connections
        try:
            self._client(f"{advice.SQLITE}{beside}").search_experiments(max_results=1)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)

    def _client(self, uri: str = "") -> "MlflowClient":
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        for logger in ("alembic", "mlflow.store.db.utils", "mlflow.tracking._model_registry.fluent"):  # one line a step
            logging.getLogger(logger).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(self.tracking_uri)  # for log_pyfunc, whose MLflow code takes no client
        return mlflow.MlflowClient(uri or self.tracking_uri)

    def _experiment_id(self) -> str:
        client = self._client()
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            location = None if self._has_server else _as_uri(self.artifact_root)
            try:
                # Without this kind, MLflow opens the experiment on a page for language-model traces.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return client.create_experiment(self.experiment, artifact_location=location, tags=kind)
            except Exception:  # another process may have been faster
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise advice.deleted_experiment(self.tracking_uri, self.experiment, experiment.experiment_id)
        self._require_own_place(experiment.artifact_location)
        return experiment.experiment_id

    def _require_own_place(self, location: str) -> None:
        """Raise InputError for an embedded store that was moved: MLflow would go on writing to the old folder."""
        own = self._own_place
        if self._is_embedded and location != own.as_uri():
            raise InputError(
                f"The MLflow store in {own.parent} was made for {location}, a path that every run and model in it "
                "holds. Move the folder back (RAREC_HOME is its parent), or move it aside to start a new store."
            )


def _as_uri(folder: str) -> str:
    return folder if "://" in folder else Path(folder).expanduser().absolute().as_uri()
