"""An artifact is built once: found by its identity, or made, recorded in MLflow and committed as a whole.

An asset's identity is the fingerprint of its code version, its configuration and the data versions of its inputs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.framework.build_lock import build_lock, forget_checkpoints, forget_idle_checkpoints
from assets.framework.configuration import InForce
from assets.framework.shown_tables import ShownTable, table_metadata
from rarec.training.progress import progress_log
from resources.artifacts.identity import fingerprint
from resources.artifacts.manifest import DamagedArtifact
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking


@dataclass
class Outcome:
    """What a build reports about its artifact.

    Attributes:
        values: numbers and short texts for the asset's metadata.
        markdown: title -> text shown rendered.
        metrics: metrics for MLflow.
        files: title -> file of the artifact; its path is shown.
        table: its table, whose columns and first rows are shown.
    """

    values: dict[str, Any] = field(default_factory=dict)
    markdown: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    table: ShownTable | None = None


@dataclass(frozen=True)
class Identity:
    """The identity of an artifact.

    Attributes:
        config: everything besides code and inputs that changes the result; JSON.
        inputs: upstream artifacts, or content hashes of other inputs, by name.
    """

    asset: str
    partition: str
    code_version: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Artifact | str]

    @property
    def versions(self) -> dict[str, str]:
        """Data version of each input."""
        return {name: one if isinstance(one, str) else one.data_version for name, one in self.inputs.items()}

    @property
    def fingerprint(self) -> str:
        """See `resources.artifacts.store.fingerprint`."""
        return fingerprint(self.asset, self.code_version, self.config, self.versions)


Build = Callable[[Path, TrackedRun], Outcome]


def materialise(
    context: dg.AssetExecutionContext,
    store: ArtifactStore,
    tracking: MlflowTracking,
    identity: Identity,
    build: Build,
    *,
    force: bool,
    workdir: Path | None = None,
    settings: Sequence[InForce] = (),
) -> dg.MaterializeResult:
    """Reuse the artifact with this identity, or build it: ``build`` fills a folder, tracked as one MLflow run.

    Args:
        workdir: the training's working folder, for stages that have one. Only one run at a time works in it. A second
            run waits, and uses the first one's artifact, or its checkpoint if it failed.
        settings: shown in Dagster and in MLflow.
    """
    asset, partition, print_ = identity.asset, identity.partition, identity.fingerprint

    def found() -> Artifact | None:
        try:
            return store.find(asset, partition, print_)
        except DamagedArtifact as error:
            context.log.warning(f"{error} Rebuilding it now.")
            return None

    def built() -> dg.MaterializeResult:
        progress_log.info("%s", f"{asset}: building")
        versions, config = identity.versions, identity.config
        with (
            tracking.run(context, asset, partition, print_, identity.code_version, dict(config)) as run,
            store.write(
                asset,
                partition,
                print_,
                inputs=versions,
                config=config,
                code_version=identity.code_version,
                replace=force,
            ) as draft,
        ):
            for name, value in identity.inputs.items():
                run.log_input(name, str(value.path) if isinstance(value, Artifact) else name, versions[name])
            if settings:
                run.log_table(pd.DataFrame(settings_rows(settings)), "settings.json")
            outcome = build(draft.path, run)
            run.log_metrics(outcome.metrics)
            draft.metadata.update(
                values=outcome.values, markdown=outcome.markdown, files=outcome.files, mlflow_run=run.url
            )
            if outcome.table:
                draft.metadata["table"] = outcome.table.kept(draft.path)
        return _result(draft.artifact, settings, run.lost)

    before = found()
    if before is not None and not force:
        if workdir is not None:
            forget_idle_checkpoints(workdir)  # left by a run that ended just before its last step
        return _result(before, settings, reused=True)
    if workdir is None:
        return built()
    with build_lock(context, workdir):
        other = found()
        # Even if forced: an artifact built while we waited is as new as ours would be.
        if other is not None and (before is None or other.manifest != before.manifest):
            return _result(other, settings, reused=True)
        if force and context.retry_number == 0:
            forget_checkpoints(workdir)
        result = built()
        forget_checkpoints(workdir)  # only now: if the disk is full, the training must not be lost
    return result


def _result(
    artifact: Artifact, settings: Sequence[InForce], lost: str = "", reused: bool = False
) -> dg.MaterializeResult:
    """What Dagster shows, what matters first: figures, plots, files, MLflow, settings; then what tells builds apart."""
    asset = artifact.manifest.asset
    if reused:
        progress_log.info("%s", f"{asset}: reused, nothing has changed")
    stored = artifact.metadata
    table = table_metadata(stored["table"]) if "table" in stored else {}
    metadata: dict[str, Any] = {
        **{name: shown_figure(value) for name, value in stored["values"].items()},
        **{name: one for name, one in table.items() if name not in stored["values"]},
        **{title: dg.MetadataValue.md(text) for title, text in stored["markdown"].items()},
        **{title: dg.MetadataValue.path(str(artifact.path / name)) for title, name in stored["files"].items()},
    }
    if stored["mlflow_run"].startswith("http"):
        metadata["mlflow_run"] = dg.MetadataValue.url(stored["mlflow_run"])
    if lost:
        metadata["not recorded in MLflow"] = lost
    if settings:
        metadata["settings in force"] = dg.MetadataValue.table(list(map(dg.TableRecord, settings_rows(settings))))
    metadata |= {
        "reused": reused,
        "artifact": dg.MetadataValue.path(str(artifact.path)),
        "fingerprint": artifact.fingerprint,
    }
    return dg.MaterializeResult(asset_key=asset, metadata=metadata, data_version=dg.DataVersion(artifact.data_version))


def shown_figure(value: Any) -> Any:
    """A figure as it is; one that is not finite as a word."""
    return "none" if isinstance(value, float) and not math.isfinite(value) else value


def settings_rows(settings: Sequence[InForce]) -> list[dict[str, str]]:
    """A row for each setting: its name, its value in words, and what set it."""
    return [{"setting": one.setting, "value": _in_words(one.value), "from": one.source} for one in settings]


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_in_words(one)}" for name, one in value.items()) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None or value == "" else str(value)


def markdown_table(table: pd.DataFrame) -> str:
    """A small table for metadata: cells without line breaks or bars."""
    header = list(map(str, table.columns))
    rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.to_numpy(object)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
