"""MLflow: one run per materialisation, linked with Dagster both ways.

Everything goes through MlflowClient with an explicit run id, never through MLflow's notion of an active run, so that
assets that run side by side do not mix.
"""

import fcntl
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import requests
from pydantic import Field

from rarec.errors import InputError, one_line
from resources.mlflow.outbox import Outbox, Parcel
from resources.mlflow.registry import ModelRegistry, Track
from resources.mlflow.run_history import ListedRun, newest_runs
from resources.settings import MLFLOW_DATABASE

if TYPE_CHECKING:  # mlflow takes seconds to import, so it is imported when a run starts
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Metric

CHECK_TIMEOUT_S = 5.0
# Metrics go out together: at most one request in so many seconds, and in so large a share of the time since the start,
# so that a day's training sends a thousand requests and not tens of thousands.
METRICS_INTERVAL_S = 5.0
METRICS_SHARE = 0.005
PARAM_LENGTH = 6000  # MLflow's limits
MODEL_NOT_LOGGED = (
    "not logged, MLflow was away; to log it, materialise again with force when MLflow is back, which trains again"
)
FINGERPRINT, CODE_VERSION = "rarec.fingerprint", "rarec.code_version"  # tags of a run
BATCH_SIZES = {"params": 100, "metrics": 1000}

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that goes away in mid-run must not hold up its training for minutes; what fails waits in the outbox.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class MlflowTracking(dg.ConfigurableResource):
    """Where runs are recorded: a tracking server, or an embedded database."""

    tracking_uri: str = Field(description="MLflow tracking URI: sqlite:///..., http://...")
    ui_url: str = Field(description="Address of the MLflow page, for links in Dagster.")
    artifact_root: str = Field(description="Folder of run artifacts when no tracking server decides where they go.")
    experiment: str = Field(default="rarec", description="MLflow experiment that holds all runs.")
    wait_s: float = Field(
        default=120,
        ge=0,
        description="How long finished work waits, in all, for a server that went away meanwhile; what cannot be "
        "recorded then is told in the asset's metadata.",
    )

    def check(self) -> str:
        """Make sure, within seconds, that runs can be recorded; returns the experiment id, raises InputError if not."""
        try:
            if self._has_server:
                # A certificate that is not trusted is for MLflow's own TLS settings to judge: the server answers.
                with suppress(requests.exceptions.SSLError):
                    requests.get(f"{self.tracking_uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_S)
            with self._database_lock():
                return self._experiment_id()
        except InputError:
            raise
        except Exception as error:  # MLflow, requests, SQLAlchemy and the file system each have their own
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
    ) -> Iterator["TrackedRun"]:
        """Record one materialisation; the run ends as FAILED on an exception and as KILLED on an interrupt.

        Open it before the work starts: it raises InputError at once when MLflow cannot be used. From then on a server
        that goes away fails nothing: see `TrackedRun.lost` afterwards.
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
            with _recorded(tracked, params):
                yield tracked
            outbox.drain()  # not after a failure or a cancel, whose outcome someone waits for
        finally:
            outbox.give_up()
            if tracked.lost:
                context.log.error(f"Not recorded in MLflow run {tracked.run_id}: {tracked.lost}")

    def registry(self, track: Track, dataset: str) -> ModelRegistry:
        """The registered versions of a data set's model; InputError if MLflow cannot be used."""
        self.check()
        return ModelRegistry(self._client(), track, dataset)

    def newest_runs(self) -> list[ListedRun]:
        """The newest runs, newest first; InputError if MLflow cannot be used."""
        experiment_id = self.check()
        try:
            return newest_runs(self._client(), experiment_id)
        except Exception as error:
            raise self._unusable(error) from error

    def _page(self, experiment_id: str) -> str:
        return f"{self.ui_url.rstrip('/')}/#/experiments/{experiment_id}/runs/"

    def _unusable(self, error: Exception) -> InputError:
        return InputError(
            f"MLflow at {self.tracking_uri} cannot be used: {type(error).__name__}: {one_line(error)}. Start the "
            "tracking server or correct MLFLOW_TRACKING_URI; without it runs are recorded in a local file."
        )

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

        for logger in ("alembic", "mlflow.store.db.utils", "mlflow.tracking._model_registry.fluent"):  # of every step
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
        self._require_own_place(experiment.artifact_location)
        return experiment.experiment_id

    def _require_own_place(self, location: str) -> None:
        """InputError for an embedded store that was moved: MLflow would go on writing to where it was."""
        own = Path(self.artifact_root).expanduser().absolute()
        embedded = self.tracking_uri == f"sqlite:///{own.with_name(MLFLOW_DATABASE)}"
        if embedded and location != own.as_uri():
            raise InputError(
                f"The MLflow store in {own.parent} was made for {location} and holds that path in every run and "
                "model. Move the folder back there (RAREC_HOME is its parent), or move it aside to begin a new store."
            )


class TrackedRun:
    """One MLflow run. Whatever it is told goes through the outbox: a server that is away never fails the work."""

    def __init__(
        self, client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str], page: str, outbox: Outbox
    ) -> None:
        self.run_id = ""  # until it is created
        self._asked = False
        self._client = client
        self._experiment_id = experiment_id
        self._name = name
        self._tags = dict(tags)
        self._page = page
        self._outbox = outbox
        self._metrics: list[Metric] = []
        self._inputs: list[DatasetInput] = []
        self._opened = time.monotonic()
        self._send_metrics_at = -float("inf")

    @property
    def url(self) -> str:
        """Its page."""
        return self._page + self.run_id

    @property
    def fingerprint(self) -> str:
        """Of the artifact being made."""
        return self._tags[FINGERPRINT]

    @property
    def lost(self) -> str:
        """After the run: what could not be recorded, in words; empty if everything was."""
        return self._outbox.lost

    def create(self) -> None:
        """Create the run in MLflow; a nested one that an earlier call has created without hearing of it is taken."""
        tags = {"mlflow.runName": self._name, **self._tags}
        if self._asked:
            name = self._name.replace("'", "\\'")
            same = (
                f"tags.`mlflow.parentRunId` = '{self._tags['mlflow.parentRunId']}' and tags.`mlflow.runName` = '{name}'"
            )
            for run in self._client.search_runs([self._experiment_id], same, max_results=1):
                self.run_id = run.info.run_id
                return
        self._asked = True
        self.run_id = self._client.create_run(self._experiment_id, tags=tags).info.run_id

    @contextmanager
    def nested(self, name: str, params: Mapping[str, Any]) -> Iterator["TrackedRun"]:
        """A run inside this one, which MLflow shows below it; it has the same inputs and ends as this one would."""
        tags = {**self._tags, "mlflow.parentRunId": self.run_id}
        inner = TrackedRun(self._client, self._experiment_id, f"{self._name} {name}", tags, self._page, self._outbox)
        self._send(f"nested run {name}", inner.create)
        with _recorded(inner, params):
            inner._log_inputs(f"inputs of nested run {name}", self._inputs)
            yield inner

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested settings as `outer.inner`; values beyond MLflow's limit are cut."""
        from mlflow.entities import Param

        self._send_batches("params", [Param(metric_name(name), _shorten(value)) for name, value in _flatten(params)])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; they go out together, some seconds later, and all of them when the run ends."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._metrics += [Metric(metric_name(name), float(value), now_ms, step) for name, value in values.items()]
        if time.monotonic() >= self._send_metrics_at:
            self._send_metrics()

    def log_input(self, name: str, source: str, data_version: str) -> None:
        """Record a data set or upstream artifact that this run read, `source` being its path or URL."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=data_version[:36],  # MLflow's limit
            source_type="artifact store",
            source=json.dumps({"uri": source}),
        )
        self._log_inputs(f"input {name}", [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])

    def log_table(self, table: "pd.DataFrame", file: str) -> None:
        """Log a table, which MLflow shows and compares between runs; `file` ends in .json."""

        def deliver() -> None:
            # MLflow would append to what an attempt has left whose answer was lost.
            if all(entry.path != file for entry in self._client.list_artifacts(self.run_id)):
                self._client.log_table(self.run_id, table, file)

        self._send(f"table {file}", deliver)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is now; it need not stay where it is."""
        content = path.read_bytes()

        def deliver() -> None:
            with tempfile.TemporaryDirectory() as place:
                copy = Path(place) / path.name
                copy.write_bytes(content)
                self._client.log_artifact(self.run_id, str(copy), folder)

        self._send(f"file {path.name}", deliver)

    def log_pyfunc(
        self, name: str, model_file: Path, files: Mapping[str, Path], requirements: Sequence[str], **options: Any
    ) -> str | None:
        """Log a model as code plus files, without any pickle, and return its URI for `mlflow.pyfunc.load_model`.

        A server that is away is waited for, since the files will not stay where they are; None if it stays away.

        `model_file` is a Python file that calls `mlflow.models.set_model(model)`; the model finds `files` by name in
        `context.artifacts`. `requirements` are pip requirements; `options` go to `mlflow.pyfunc.save_model`
        (signature, input_example, model_config).
        """
        import mlflow
        from mlflow.models import Model

        made: list[LoggedModel] = []
        uris: list[str] = []

        def deliver() -> None:
            # Created here, since MLflow would put it into the experiment it holds for active: `Default`, in ./mlruns.
            if not made:
                params = self._client.get_run(self.run_id).data.params
                made.append(
                    self._client.create_logged_model(
                        self._experiment_id, name, source_run_id=self.run_id, params=params
                    )
                )
            info = Model.log(
                model_id=made[0].model_id,
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=self.run_id,
                python_model=str(model_file),
                artifacts={key: str(path) for key, path in files.items()},
                pip_requirements=list(requirements),
                **options,
            )
            uris.append(str(info.model_uri))

        parcel = Parcel(f"model {name}", deliver)
        self._outbox.send(parcel)
        self._outbox.drain()
        self._outbox.withdraw(parcel)
        return uris[0] if uris else None

    def _log_inputs(self, what: str, inputs: Sequence["DatasetInput"]) -> None:
        if inputs:
            self._inputs += inputs
            told = list(inputs)  # what is sent later must not grow meanwhile
            self._send(what, lambda: self._client.log_inputs(self.run_id, told))

    def close(self, status: str) -> None:
        """Send the metrics that are left and end the run."""
        self._send_metrics()
        now_ms = int(time.time() * 1000)
        self._send(f"status {status}", lambda: self._client.set_terminated(self.run_id, status, now_ms))

    def _send_metrics(self) -> None:
        now = time.monotonic()
        self._send_metrics_at = now + max(METRICS_INTERVAL_S, METRICS_SHARE * (now - self._opened))
        self._send_batches("metrics", self._metrics)
        self._metrics = []

    def _send_batches(self, kind: str, values: Sequence[Any]) -> None:
        for start in range(0, len(values), BATCH_SIZES[kind]):
            part = values[start : start + BATCH_SIZES[kind]]
            self._send(kind, partial(self._deliver_batch, kind, part), len(part))

    def _deliver_batch(self, kind: str, part: Sequence[Any]) -> None:
        batch: dict[str, Any] = {kind: part}
        self._client.log_batch(self.run_id, **batch)

    def _send(self, what: str, deliver: Callable[[], object], count: int = 1) -> None:
        self._outbox.send(Parcel(what, deliver, count))


@contextmanager
def _recorded(tracked: TrackedRun, params: Mapping[str, Any]) -> Iterator[None]:
    """Log the parameters, and end the run as FINISHED, FAILED or KILLED."""
    status = "KILLED"
    try:
        tracked.log_params(params)
        yield
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
