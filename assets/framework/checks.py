"""How asset checks are declared: a pure function examines the latest artifact of an asset."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.framework.lineage import upstream
from rarec.data.spec import DatasetSpec
from resources.artifacts.store import Artifact, ArtifactStore
from resources.workspace import Workspace

Examine = Callable[[DatasetSpec, Artifact], tuple[bool, dict[str, Any]]]


RECALL_AT = 20
RECALL_SAMPLE = 2000  # queries by which the recall of an index is measured


def artifact_check(
    name: str, asset: str, description: str, examine: Examine, blocking: bool = True
) -> dg.AssetChecksDefinition:
    """A check of an artifact. If ``examine(spec, artifact)`` fails, downstream assets do not run.

    ``examine`` returns whether the check passed, and plain values to show. A check that is not ``blocking`` only warns.
    """
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(asset=asset, name=name, description=description, blocking=blocking)
    def check(
        context: dg.AssetCheckExecutionContext, store: ArtifactStore, workspace: Workspace
    ) -> dg.AssetCheckResult:
        passed, details = examine(workspace.spec(context.partition_key), upstream(context, store, asset)[asset])
        return dg.AssetCheckResult(passed=passed, severity=severity, metadata=details)

    return check


def recall_check(asset: str, what: str, also: tuple[str, ...] = ()) -> dg.AssetChecksDefinition:
    """The check of an index's recall. The artifact's values hold the recall and the minimum.

    ``also`` names further values to show.
    """

    def examine(_spec: DatasetSpec, artifact: Artifact) -> tuple[bool, dict[str, Any]]:
        values = artifact.metadata["values"]
        recall, minimum = values[f"recall_at_{RECALL_AT}"], values["minimum_recall"]
        return recall >= minimum, {"recall": recall, "minimum_recall": minimum, **{name: values[name] for name in also}}

    description = f"The index finds at least `minimum_recall` of the exact {RECALL_AT} nearest {what}."
    return artifact_check("recall", asset, description, examine)
