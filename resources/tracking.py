"""MLflow: one run per materialisation, linked with Dagster both ways.

Everything goes through MlflowClient with an explicit run id, never through MLflow's notion of an active run, so that
assets that run side by side do not mix.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import requests
from pydantic import Field

from rarec.errors import InputError, one_line

if TYPE_CHECKING:  # mlflow takes seconds to import, so it is imported when a run starts
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Metric

CHECK_TIMEOUT_S = 5.0
RETRY_INTERVAL_S = 30.0  # between attempts to deliver metrics to a server that is away
PARAM_LENGTH = 6000  # MLflow's limits
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that goes away in mid-run must not hold up training for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class MlflowTracking(dg.ConfigurableResource):
    """Where runs are recorded: a tracking server, or an embedded database."""

    tracking_uri: str = Field(description="MLflow tracking URI: sqlite:///..., http://...")
    ui_url: str = Field(description="Address of the MLflow page, for links in Dagster.")
    artifact_root: str = Field(description="Folder of run artifacts when no tracking server decides where they go.")
    experiment: str = Field(default="rarec", description="MLflow experiment that holds all runs.")

    def check(self) -> str:
        """Make sure, within seconds, that runs can be recorded; returns the experiment id, raises InputError if not."""
        try:
            if self._has_server:
                # A certificate that is not trusted is for MLflow's own TLS settings to judge: the server answers.
                with suppress(requests.exceptions.SSLError):
                    requests.get(f"{self.tracking_uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_S)
            with self._database_lock():
                return self._experiment_id()
        except Exception as error:  # MLflow, requests, SQLAlchemy and the file system each have their own
            raise InputError(
                f"MLflow at {self.tracking_uri} cannot be used: {type(error).__name__}: {one_line(error)}. "
                "Start the tracking server or correct MLFLOW_TRACKING_URI; without it runs are recorded in a local "
                "file."
            ) from error

    @contextmanager
    def run(
        self, context: dg.AssetExecutionContext, asset: str, partition: str, fingerprint: str, params: Mapping[str, Any]
    ) -> Iterator["TrackedRun"]:
        """Record one materialisation; the run ends as FAILED on an exception and as KILLED on an interrupt.

        Open it before the work starts: it raises InputError at once when MLflow cannot be used.
        """
        experiment_id = self.check()
        client = self._client()
        tags = {
            "mlflow.runName": f"{asset} {partition} {fingerprint[:8]}",
            "dagster.run_id": context.run.run_id,
            "dagster.asset_key": asset,
            "dagster.partition": partition,
            "rarec.fingerprint": fingerprint,
        }
        run_id = client.create_run(experiment_id, tags=tags).info.run_id
        url = f"{self.ui_url.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
        with _recorded(TrackedRun(client, run_id, url, fingerprint, context.log), params) as tracked:
            yield tracked

    @property
    def _has_server(self) -> bool:
        return self.tracking_uri.startswith(("http://", "https://"))

    @contextmanager
    def _database_lock(self) -> Iterator[None]:
        """One process at a time: MLflow fails when two of them create the tables of a new sqlite file."""
        if not self.tracking_uri.startswith("sqlite:///"):
            yield
            return
        database = Path(self.tracking_uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(database.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _client(self) -> "MlflowClient":
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        for logger in ("alembic", "mlflow.store.db.utils"):  # they tell of every table of a new database
            logging.getLogger(logger).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(self.tracking_uri)  # for log_pyfunc, whose MLflow code takes no client
        return mlflow.MlflowClient(self.tracking_uri)

    def _experiment_id(self) -> str:
        client = self._client()
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            location = None if self._has_server else _as_uri(self.artifact_root)
            try:
                # Without the kind MLflow opens the experiment on a page for language-model traces.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return client.create_experiment(self.experiment, artifact_location=location, tags=kind)
            except Exception:  # another process may have been faster
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        return experiment.experiment_id


class TrackedRun:
    """One MLflow run. Metrics wait for a server that is away; everything else needs it there."""

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        url: str,
        fingerprint: str,
        log: dg.DagsterLogManager,
    ) -> None:
        self.run_id = run_id
        self.url = url
        self.fingerprint = fingerprint
        self._client = client
        self._log = log
        self._waiting: list[Metric] = []
        self._retry_at = -float("inf")

    @contextmanager
    def nested(self, name: str, params: Mapping[str, Any]) -> Iterator["TrackedRun"]:
        """A run inside this one, which MLflow shows below it; it ends as this one would."""
        parent = self._client.get_run(self.run_id)
        tags = {key: value for key, value in parent.data.tags.items() if key.startswith(("dagster.", "rarec."))}
        tags |= {"mlflow.parentRunId": self.run_id, "mlflow.runName": f"{parent.info.run_name} {name}"}
        experiment = parent.info.experiment_id
        run_id = self._client.create_run(experiment, tags=tags).info.run_id
        url = self.url.replace(self.run_id, run_id)
        with _recorded(TrackedRun(self._client, run_id, url, self.fingerprint, self._log), params) as tracked:
            yield tracked

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested settings as `outer.inner`; values beyond MLflow's limit are cut."""
        from mlflow.entities import Param

        flat = [Param(metric_name(name), _shorten(value)) for name, value in _flatten(params)]
        for start in range(0, len(flat), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=flat[start : start + PARAMS_PER_CALL])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; if the server is away they wait and go out later: training never fails for them."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(metric_name(name), float(value), now_ms, step) for name, value in values.items()]
        if time.monotonic() >= self._retry_at:
            self._deliver()

    def log_input(self, name: str, source: str, data_version: str) -> None:
        """Record a data set or upstream artifact that this run read, `source` being its path or URL."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=data_version[:36],  # MLflow's limit
            source_type="artifact store",
            source=json.dumps({"uri": source}),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])

    def log_table(self, table: "pd.DataFrame", file: str) -> None:
        """Log a table, which MLflow shows and compares between runs; `file` ends in .json."""
        self._client.log_table(self.run_id, table, file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_pyfunc(
        self, name: str, model_file: Path, files: Mapping[str, Path], requirements: Sequence[str], **options: Any
    ) -> str:
        """Log a model as code plus files, without any pickle, and return its URI for `mlflow.pyfunc.load_model`.

        `model_file` is a Python file that calls `mlflow.models.set_model(model)`; the model finds `files` by name in
        `context.artifacts`. `requirements` are pip requirements; `options` go to `mlflow.pyfunc.save_model`
        (signature, input_example, model_config).
        """
        import mlflow
        from mlflow.models import Model

        # Created here, since MLflow would put it into the experiment it holds for active: `Default`, in ./mlruns.
        run = self._client.get_run(self.run_id)
        model = self._client.create_logged_model(
            run.info.experiment_id, name, source_run_id=self.run_id, params=run.data.params
        )
        info = Model.log(
            model_id=model.model_id,
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=self.run_id,
            python_model=str(model_file),
            artifacts={key: str(path) for key, path in files.items()},
            pip_requirements=list(requirements),
            **options,
        )
        return str(info.model_uri)

    def close(self, status: str) -> None:
        """Deliver what waits and end the run; a server that is away only costs a warning."""
        self._deliver()
        if self._waiting:
            self._log.error(f"{len(self._waiting)} metric values of MLflow run {self.run_id} could not be delivered.")
        try:
            self._client.set_terminated(self.run_id, status)
        except Exception as error:
            self._log.warning(f"MLflow run {self.run_id} could not be marked {status}: {error}")

    def _deliver(self) -> None:
        try:
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:METRICS_PER_CALL])
                del self._waiting[:METRICS_PER_CALL]
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_INTERVAL_S
            self._log.warning(f"MLflow takes no metrics now, {len(self._waiting)} values wait: {error}")


@contextmanager
def _recorded(tracked: TrackedRun, params: Mapping[str, Any]) -> Iterator[TrackedRun]:
    """Log the parameters, and end the run as FINISHED, FAILED or KILLED."""
    status = "KILLED"
    try:
        tracked.log_params(params)
        yield tracked
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracked.close(status)


def metric_name(name: str) -> str:
    """The name as MLflow allows it: `ndcg@10` becomes `ndcg_at_10`."""
    return re.sub(r"[^\w./: -]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:250]


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 4] + " ..."


def _as_uri(folder: str) -> str:
    return folder if "://" in folder else Path(folder).expanduser().absolute().as_uri()
