"""A recorded run, everything it can be told, and a server that goes away."""

import dagster as dg
import pandas as pd
from mlflow import MlflowClient

from resources.mlflow.tracking import MlflowTracking


def materialize(tracking, use, params=None):
    """Materialise an asset whose run is handed to `use`; returns the finished MLflow run and the result."""
    seen = {}

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo"]))
    def ranking_metrics(context: dg.AssetExecutionContext, mlflow_tracking: MlflowTracking) -> dg.MaterializeResult:
        arguments = (context, "ranking_metrics", "demo", "0123456789abcdef", "3", params or {})
        with mlflow_tracking.run(*arguments) as run:
            seen["run"] = run
            use(run)
        return dg.MaterializeResult(metadata={"mlflow": dg.MetadataValue.url(run.url)})

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [ranking_metrics],
            partition_key="demo",
            resources={"mlflow_tracking": tracking},
            instance=instance,
            raise_on_error=False,
        )
        result.log_lines = [record.user_message for record in instance.all_logs(result.run_id)]
    recorded = MlflowClient(tracking.tracking_uri).get_run(seen["run"].run_id) if seen else None
    return recorded, result


class Away:
    """Stands before an MLflow client: while `away` every call fails as a server that is gone makes it fail."""

    def __init__(self, client):
        self.client, self.away, self.calls, self.deaf = client, False, [], False

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append(name)
            if self.away:
                raise ConnectionError("server away")
            answer = getattr(self.client, name)(*arguments, **options)
            if self.deaf and not name.startswith(("list", "search")):
                raise ConnectionError("answer lost")
            return answer

        return call


def everything(run, folder):
    """Tell a run all that a run can be told."""
    (folder / "page.html").write_text("<p>hello</p>")
    for step in range(3):
        run.log_metrics({"loss": float(step)}, step)
    run.log_params({"rank": 8})
    run.log_input("interactions", "/store/interactions/demo/abc", "d" * 32)
    run.log_table(pd.DataFrame({"k": [5]}), "metrics_table.json")
    run.log_file(folder / "page.html")
    (folder / "page.html").unlink()  # as when the artifact moves to its final place
    with run.nested("mixed", {"mode": "mixed"}) as nested:
        nested.log_metrics({"AUC": 0.75})


def assert_everything_arrived(uri, run_id):
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["rank"] == "8"
    losses = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in losses) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(run.inputs.dataset_inputs) == 1
    assert {f.path for f in client.list_artifacts(run_id)} == {"metrics_table.json", "page.html"}
    (nested,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert (nested.info.status, nested.data.params, nested.data.metrics) == (
        "FINISHED", {"mode": "mixed"}, {"AUC": 0.75}
    )  # fmt: skip
    assert nested.data.tags["dagster.asset_key"] == "ranking_metrics"
    assert [entry.dataset.digest for entry in nested.inputs.dataset_inputs] == ["d" * 32]
