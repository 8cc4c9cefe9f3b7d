"""Runs that MLflow holds, read back to be compared."""

import difflib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rarec.errors import InputError
from rarec.reports.run_comparison import LETTERS, ComparedRun, Curve, Pictures

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINGERPRINT, CODE_VERSION = "rarec.fingerprint", "rarec.code_version"  # tags of a run

LISTED = 30  # newest runs
NEAREST = 3  # names that an error suggests
ALL_LISTED = "`make compare` without RUNS lists the newest"
NEWEST_FIRST = ["attributes.start_time DESC"]
PAGE = 1000
LEAST_PREFIX = 4  # characters of an id
# What a run is judged by first, by asset: ranking_metrics, nested runs of ctr_metrics, trainings, sweeps, candidates,
# drift reports.
MAIN = [
    f"{where}{figure}"
    for figure in ("NDCG_at_10", "AUC")
    for where in ("test/unmasked/fine-tuned/", "test/", "best_", "best validation ", "candidate/", "now/")
]
PASSING = ("eta_s",)  # metrics that tell nothing once the run has ended


@dataclass(frozen=True)
class ListedRun:
    """One run of the list."""

    run_id: str
    name: str
    dataset: str
    status: str
    started: str
    figure: str
    """The metric it is judged by first, with its name; empty where it has none such."""


class RecordedRuns:
    """The runs of one experiment."""

    def __init__(self, client: "MlflowClient", experiment_id: str, page: str) -> None:
        """``page``: address of a run's page but for its id."""
        self._client = client
        self._experiment_id = experiment_id
        self._page = page

    def find(self, wanted: Sequence[str]) -> list["Run"]:
        """The runs with these ids, beginnings of ids, or names; of several with one name the newest.

        Raises:
            InputError: one is not found, not clear or named twice; there are not two of them at least or too many.
        """
        runs = self._all()
        found = [self._one(name, runs) for name in wanted]
        if not 2 <= len(wanted) <= len(LETTERS):
            raise InputError(
                f"name 2 to {len(LETTERS)} runs, by id, beginning of id or name: make compare "
                f"RUNS='1a2b3c4d 5e6f7a8b'; {ALL_LISTED}"
            )
        ids = [run.info.run_id for run in found]
        for name, run_id in zip(wanted, ids, strict=True):
            if ids.count(run_id) > 1:
                raise InputError(f"the run {name!r} is named twice; name runs that differ; {ALL_LISTED}")
        return found

    def read(self, run: "Run") -> ComparedRun:
        """All that is recorded of it but its files."""
        info, data = run.info, run.data
        metrics = {name: value for name, value in data.metrics.items() if name not in PASSING}
        curves = {}
        for name in metrics:
            points = sorted(
                self._client.get_metric_history(info.run_id, name), key=lambda one: (one.step, one.timestamp)
            )
            latest = {point.step: point.value for point in points}  # a step that was done again counts once
            curves[name] = Curve(steps=tuple(latest), values=tuple(latest.values()))
        return ComparedRun(
            run_id=info.run_id,
            name=info.run_name,
            asset=data.tags.get("dagster.asset_key", ""),
            dataset=data.tags.get("dagster.partition", ""),
            status=info.status,
            started=_started(run),
            seconds=(info.end_time - info.start_time) / 1000 if info.end_time else math.nan,
            fingerprint=data.tags.get(FINGERPRINT, ""),
            code_version=data.tags.get(CODE_VERSION, ""),
            params=dict(data.params),
            metrics=metrics,
            inputs={one.dataset.name: one.dataset.digest for one in (run.inputs.dataset_inputs if run.inputs else [])},
            curves=curves,
            url=self._page + info.run_id,
        )

    def pictures(self, runs: Sequence["Run"]) -> Pictures:
        """The PNG files that they logged, one folder deep."""
        found: Pictures = {}
        for place, run in enumerate(runs):
            files = self._client.list_artifacts(run.info.run_id)
            for folder in [one for one in files if one.is_dir]:
                files += self._client.list_artifacts(run.info.run_id, folder.path)
            for file in files:
                if not file.is_dir and file.path.endswith(".png"):
                    with tempfile.TemporaryDirectory() as beside:
                        copy = self._client.download_artifacts(run.info.run_id, file.path, beside)
                        found.setdefault(file.path, {})[place] = Path(copy).read_bytes()
        return found

    def _one(self, wanted: str, runs: Sequence["Run"]) -> "Run":
        named = [run for run in runs if wanted in (run.info.run_id, run.info.run_name)]
        if named:
            return named[0]
        begun = [run for run in runs if len(wanted) >= LEAST_PREFIX and run.info.run_id.startswith(wanted)]
        if len(begun) > 1:
            raise InputError(f"{len(begun)} runs have an id that begins with {wanted}; write more of it")
        if not begun:
            names = list(dict.fromkeys(run.info.run_name for run in runs))
            near = [name for name in names if wanted in name] or difflib.get_close_matches(wanted, names)
            nearest = f"; nearest: {', '.join(map(repr, near[:NEAREST]))}" if near else ""
            raise InputError(f"MLflow knows no run {wanted!r}{nearest}; {ALL_LISTED}")
        return begun[0]

    def _all(self) -> list["Run"]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            found = self._client.search_runs(
                [self._experiment_id], order_by=NEWEST_FIRST, max_results=PAGE, page_token=token
            )
            runs += found
            token = found.token
            if not token:
                return runs

    def newest(self) -> list[ListedRun]:
        """The newest runs, newest first."""
        return [
            ListedRun(
                run_id=run.info.run_id,
                name=run.info.run_name,
                dataset=run.data.tags.get("dagster.partition", ""),
                status=run.info.status.lower(),
                started=_started(run),
                figure=next((f"{name} {run.data.metrics[name]:.4f}" for name in MAIN if name in run.data.metrics), ""),
            )
            for run in self._client.search_runs([self._experiment_id], order_by=NEWEST_FIRST, max_results=LISTED)
        ]


def _started(run: "Run") -> str:
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
