"""The list of the newest runs, each with the figure that sums it up."""

from types import SimpleNamespace

import pytest

from resources.mlflow.run_history import LISTED, newest_runs


def listed(**metrics):
    """A run with these metrics, as it stands in the list."""
    run = SimpleNamespace(
        info=SimpleNamespace(run_id="abc", run_name="memory_bank", status="FINISHED", start_time=1_700_000_000_000),
        data=SimpleNamespace(metrics=metrics, tags={"dagster.partition": "demo"}),
    )
    asked = {}
    client = SimpleNamespace(search_runs=lambda experiments, **how: asked.update(how, experiments=experiments) or [run])
    (one,) = newest_runs(client, "7")
    assert asked == {"experiments": ["7"], "order_by": ["attributes.start_time DESC"], "max_results": LISTED}
    return one


def test_a_run_is_told_in_one_line():
    one = listed()
    assert (one.run_id, one.name, one.dataset, one.status) == ("abc", "memory_bank", "demo", "finished")
    assert (one.started, one.figure) == ("2023-11-14 22:13 UTC", "")


@pytest.mark.parametrize(
    ("metrics", "figure"),
    [
        ({"test/unmasked/fine-tuned/NDCG_at_10": 0.12345, "loss": 3.0}, "test/unmasked/fine-tuned/NDCG_at_10 0.1235"),
        ({"best_AUC": 0.75, "best_LogLoss": 0.5}, "best_AUC 0.7500"),
        ({"candidate/AUC": 0.5, "now/AUC": 0.6}, "candidate/AUC 0.5000"),
        ({"loss": 3.0}, ""),
    ],
)
def test_the_figure_is_the_one_that_decides(metrics, figure):
    assert listed(**metrics).figure == figure
