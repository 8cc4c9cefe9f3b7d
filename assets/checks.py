"""How asset checks are made: a pure function looks at the artifact that an asset materialised last."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.stage import upstream
from rarec.data.spec import DatasetSpec
from resources.artifacts import Artifact, ArtifactStore
from resources.folders import Folders

Examine = Callable[[DatasetSpec, Artifact], tuple[bool, dict[str, Any]]]


def artifact_check(name: str, asset: str, description: str, examine: Examine) -> dg.AssetChecksDefinition:
    """A blocking check: what depends on ``asset`` does not run if ``examine(spec, artifact)`` says no.

    ``examine`` returns whether it passed and plain values to show.
    """

    @dg.asset_check(asset=asset, name=name, description=description, blocking=True)
    def check(context: dg.AssetCheckExecutionContext, store: ArtifactStore, folders: Folders) -> dg.AssetCheckResult:
        passed, details = examine(folders.spec(context.partition_key), upstream(context, store, asset)[asset])
        return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.ERROR, metadata=details)

    return check
