"""A check looks at the artifact that its asset materialised last, and stops what follows if it does not pass."""

import dagster as dg
import pytest
from plant import failed_checks, materialised

from assets.framework.checks import artifact_check, recall_check

TRACK = "tables"


@pytest.fixture
def run(plant, tmp_path):
    """Materialises `toy` with these values, its check, and `behind`, which depends on it."""
    partitions = dg.StaticPartitionsDefinition(["tiny"])

    def run(check, **values):
        @dg.asset(partitions_def=partitions)
        def toy():
            (tmp_path / "x").write_text("content")
            return dg.MaterializeResult(metadata={"fingerprint": plant.put("toy", "tiny", tmp_path, values)})

        @dg.asset(partitions_def=partitions, deps=[toy])
        def behind():
            return dg.MaterializeResult(metadata={"reused": False})

        return dg.materialize(
            [toy, behind, check], partition_key="tiny", instance=plant.instance, resources=dict(plant.defs.resources),
            raise_on_error=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("passes", [True, False])
def test_a_check_gets_declaration_and_artifact_and_stops_what_follows(run, passes):
    def examine(spec, artifact):
        return passes, {"title": spec.title, **artifact.metadata["values"]}

    result = run(artifact_check("toyish", "toy", "A toy's check.", examine), number=2)
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (passes, dg.AssetCheckSeverity.ERROR)
    assert {name: value.value for name, value in evaluation.metadata.items()} == {
        "title": "Tiny synthetic data set", "number": 2
    }  # fmt: skip
    assert ("behind" in materialised(result)) == passes


@pytest.mark.parametrize(("recall", "passes"), [(0.9, True), (0.95, True), (0.89, False)])
def test_an_index_must_find_as_much_as_is_asked_for(run, recall, passes):
    values = {"recall_at_20": recall, "minimum_recall": 0.9, "items": 7}
    result = run(recall_check("toy", "toys", also=("items",)), **values)
    shown = {"recall": recall, "minimum_recall": 0.9, "items": 7}
    assert failed_checks(result) == ({} if passes else {("toy", "recall"): shown})
