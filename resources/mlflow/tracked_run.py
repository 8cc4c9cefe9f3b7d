"""One MLflow run and what an asset records in it: parameters, metrics, inputs, files and models."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.mlflow.outbox import Outbox, Parcel

if TYPE_CHECKING:  # mlflow takes seconds to import, so it is imported when a run starts
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Metric

FINGERPRINT, CODE_VERSION = "rarec.fingerprint", "rarec.code_version"  # tags of a run
# Metrics are collected and sent together. The interval grows with the run, so that a day of training sends about a
# thousand requests instead of tens of thousands.
METRICS_INTERVAL_S = 5.0
METRICS_SHARE = 0.005
PARAM_LENGTH = 6000  # MLflow's limits
BATCH_SIZES = {"params": 100, "metrics": 1000}
MODEL_NOT_LOGGED = (
    "not logged, MLflow was unavailable. To log the model, materialise the asset with force once MLflow is back; this "
    "trains it again."
)


class TrackedRun:
    """One MLflow run. Everything goes through the outbox, so a server that is away never fails the work."""

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
        """Address of its page."""
        return self._page + self.run_id

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the artifact that is being made."""
        return self._tags[FINGERPRINT]

    @property
    def lost(self) -> str:
        """What could not be recorded, in words; empty if everything was. Read it after the run."""
        return self._outbox.lost

    def create(self) -> None:
        """Create the run in MLflow.

        A nested run may be created again after its answer was lost; then the run that is already there is used.
        """
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
    def recording(self, params: Mapping[str, Any]) -> Iterator[None]:
        """Log the parameters; after the block end the run as FINISHED, FAILED or, on an interrupt, KILLED."""
        status = "KILLED"
        try:
            self.log_params(params)
            yield
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self.close(status)

    @contextmanager
    def nested(self, name: str, params: Mapping[str, Any]) -> Iterator["TrackedRun"]:
        """A run inside this one, with the same inputs. MLflow shows it below this one."""
        tags = {**self._tags, "mlflow.parentRunId": self.run_id}
        inner = TrackedRun(self._client, self._experiment_id, f"{self._name} {name}", tags, self._page, self._outbox)
        self._send(f"nested run {name}", inner.create)
        with inner.recording(params):
            inner._log_inputs(f"inputs of nested run {name}", self._inputs)
            yield inner

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; nested ones become `outer.inner`, and values over MLflow's limit are truncated."""
        from mlflow.entities import Param

        self._send_batches("params", [Param(metric_name(name), _shorten(value)) for name, value in _flatten(params)])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log the metrics of one step. They are sent together a few seconds later, at the latest when the run ends."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._metrics += [Metric(metric_name(name), float(value), now_ms, step) for name, value in values.items()]
        if time.monotonic() >= self._send_metrics_at:
            self._send_metrics()

    def log_input(self, name: str, source: str, data_version: str) -> None:
        """Record a data set or upstream artifact that this run read; `source` is its path or URL."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=data_version[:36],  # MLflow's limit
            source_type="artifact store",
            source=json.dumps({"uri": source}),
        )
        self._log_inputs(f"input {name}", [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])

    def log_table(self, table: "pd.DataFrame", file: str) -> None:
        """Log a table, which MLflow shows and compares across runs; `file` must end in .json."""

        def deliver() -> None:
            # MLflow appends to an existing table, and an attempt whose answer was lost may have written it already.
            if all(entry.path != file for entry in self._client.list_artifacts(self.run_id)):
                self._client.log_table(self.run_id, table, file)

        self._send(f"table {file}", deliver)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is now; you may move or delete it afterwards."""
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

        The files may be moved afterwards, so this waits for an unavailable server. None if it stays unavailable.

        Args:
            model_file: a Python file that calls `mlflow.models.set_model(model)`.
            files: the model finds them by name in `context.artifacts`.
            requirements: pip requirements.
            options: passed on to `mlflow.pyfunc.save_model` (signature, input_example, model_config).
        """
        import mlflow
        from mlflow.models import Model

        made: list[LoggedModel] = []
        uris: list[str] = []

        def deliver() -> None:
            # Left to itself, MLflow would create it in its active experiment: `Default`, in ./mlruns.
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

    def close(self, status: str) -> None:
        """Send the remaining metrics and end the run."""
        self._send_metrics()
        now_ms = int(time.time() * 1000)
        self._send(f"status {status}", lambda: self._client.set_terminated(self.run_id, status, now_ms))

    def _log_inputs(self, what: str, inputs: Sequence["DatasetInput"]) -> None:
        if inputs:
            self._inputs += inputs
            sent = list(inputs)  # a copy: the parcel may be sent later and must not grow meanwhile
            self._send(what, lambda: self._client.log_inputs(self.run_id, sent))

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


def metric_name(name: str) -> str:
    """The name in the characters that MLflow allows: `ndcg@10` becomes `ndcg_at_10`."""
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
