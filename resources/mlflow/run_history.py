"""The newest runs that MLflow holds, for the table of `make runs`."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LISTED = 30
# The metric that sums up a run, by asset: ranking_metrics, nested runs of ctr_metrics, trainings, sweeps, candidates,
# drift reports.
MAIN = [
    f"{where}{figure}"
    for figure in ("NDCG_at_10", "AUC")
    for where in ("test/unmasked/fine-tuned/", "test/", "best_", "best validation ", "candidate/", "now/")
]


@dataclass(frozen=True)
class ListedRun:
    """One run of the list.

    Attributes:
        figure: name and value of the metric that sums it up; empty if it has none of them.
    """

    run_id: str
    name: str
    dataset: str
    status: str
    started: str
    figure: str


def newest_runs(client: "MlflowClient", experiment_id: str) -> list[ListedRun]:
    """The newest runs of an experiment, newest first."""
    found = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], max_results=LISTED)
    return [_listed(run) for run in found]


def _listed(run: "Run") -> ListedRun:
    metrics = run.data.metrics
    return ListedRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        dataset=run.data.tags.get("dagster.partition", ""),
        status=run.info.status.lower(),
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        figure=next((f"{name} {metrics[name]:.4f}" for name in MAIN if name in metrics), ""),
    )
