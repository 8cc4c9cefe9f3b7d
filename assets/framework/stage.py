"""What all assets share: settings per data set, upstream artifacts, and reuse of what is already there.

An asset's identity is the fingerprint of its code version, settings and input data versions. `materialise` looks it up
in the artifact store, builds only what is missing, and records the outcome in Dagster and MLflow.
"""

import functools
import logging
import math
import time
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import dagster as dg
from pydantic import Field, ValidationError, create_model

from assets.framework.build_lock import forget_checkpoints, forget_idle_checkpoints, turn
from rarec.config import Settings, refusals
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError
from rarec.training.progress import Progress
from resources.artifacts.identity import fingerprint
from resources.artifacts.manifest import DamagedArtifact
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.registry import TRACKS
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

if TYPE_CHECKING:
    import pandas as pd

S = TypeVar("S", bound=Settings)
C = TypeVar("C", bound="StageConfig")
F = TypeVar("F", bound=Callable[..., Any])

OWNER = "team:data-engineering"
TERMINAL_METRICS = (
    "learning_rate",
    "samples_per_s",
    "tokens_per_s",
    "gpu_memory_gib",
    "HR@10",
    "NDCG@10",
    "masked_NDCG@10",
    "AUC",
    "LogLoss",
)
TERMINAL_INTERVAL_S = 5.0
# Of the steps MLflow gets one in so many seconds, and in so large a share of the time so far: a day gives about 1,000.
STEP_INTERVAL_S = 2.0
STEP_SHARE = 0.005
progress_log = logging.getLogger("rarec.progress")  # `make run` shows it in the terminal


class StageConfig(dg.Config):
    """Run configuration of every asset."""

    force: bool = Field(default=False, description="Build again even if an artifact of the same identity exists.")


def takes(settings: type[Settings]) -> Callable[[type[C]], type[C]]:
    """Class decorator: the run configuration gets every field of ``settings``, all optional.

    A field left out takes the data set's own default, else the field's.
    """
    fields: dict[str, Any] = {
        name: (_dagster_type(info.annotation) | None, Field(default=None, description=_describe(info)))
        for name, info in settings.model_fields.items()
    }

    def extend(config: type[C]) -> type[C]:
        return create_model(
            config.__name__, __base__=config, __module__=config.__module__, __doc__=config.__doc__, **fields
        )

    return extend


def resolve(settings: type[S], config: StageConfig, spec: DatasetSpec, stage: str, like: str = "") -> S:
    """Settings from, in order of precedence, the run's configuration, the data set's defaults, the fields' defaults.

    ``like`` names another stage whose defaults hold where the data set has none for this one.
    """
    given = {name: value for name, value in config.model_dump(exclude={"force"}).items() if value is not None}
    return make_settings(
        settings,
        {**spec.overrides.get(like, {}), **spec.overrides.get(stage, {}), **given},
        f"settings of {stage} for {spec.name}",
    )


def make_settings(settings: type[S], values: Mapping[str, Any], where: str, also: tuple[str, ...] = ()) -> S:
    """The settings with these values; InputError naming ``where`` and each value that is refused, and why.

    ``also`` names what else may be set in the same place, for the message.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        raise InputError(f"{where}: {refusals(error, known=(*settings.model_fields, *also))}") from error


def refuse_bad_input(asset: F) -> F:
    """Turn `InputError` into a Dagster failure that is shown as one message and never retried; a run without a data
    set is bad input, too.
    """

    @functools.wraps(asset)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            for one in (*args, *kwargs.values()):
                if isinstance(one, dg.OpExecutionContext | dg.AssetExecutionContext) and not one.has_partition_key:
                    raise InputError("choose a data set (the partition) for this run")
            return asset(*args, **kwargs)
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    return typing.cast(F, wrapper)


def upstream(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, store: ArtifactStore, *names: str
) -> dict[str, Artifact]:
    """The artifacts that these assets materialised for the current partition: in this run, else last.

    Raises:
        InputError: one is missing, or was made from another version of one of the others.
    """
    own = {}
    # Another run may materialise the same asset with other settings meanwhile; its result is none of ours.
    for record in context.instance.get_records_for_run(
        context.run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    ).records:
        if record.asset_key and record.partition_key == context.partition_key:
            own[record.asset_key.to_user_string()] = record
    found = {}
    for name in names:
        records = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(name), asset_partitions=[context.partition_key]), limit=1
        ).records
        if not records:
            raise InputError(
                f"{name} has not been materialised for {context.partition_key}; materialise it first"
                f"{_made_by(context, name)}"
            )
        materialization = own.get(name, records[0]).asset_materialization
        assert materialization is not None
        identity = str(materialization.metadata["fingerprint"].value)
        found[name] = store.open(name, context.partition_key, identity)
    for name, artifact in found.items():
        for other, version in artifact.manifest.inputs.items():
            if other in found and found[other].data_version != version:
                raise InputError(
                    f"the {name} of {context.partition_key} was made from another {other} than the present one; "
                    f"materialise {name} again{_made_by(context, name)}"
                )
    return found


def _made_by(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: str) -> str:
    """The job that makes an asset, in brackets, by its tag `track`; nothing for what concerns the model in use, of
    which it depends on the model's kind.
    """
    key, graph = dg.AssetKey(asset), context.job_def.asset_layer.asset_graph
    if not graph.has(key) or graph.get(key).group_name == "operations":
        return ""
    jobs = [track for track in TRACKS if graph.get(key).tags.get("track") in (track, "both")]
    named = " or ".join(f"`{job}`" for job in jobs)
    return f" (job {named}: make run DATASET={context.partition_key} TRACK={jobs[0]})" if jobs else ""


def lineage(context: dg.AssetExecutionContext, store: ArtifactStore, root: str, *names: str) -> dict[str, Artifact]:
    """What this asset materialised for the current partition (in this run, else last), and those of its ancestors with
    these names, as they were then: what has been made anew since, with new data, does not matter.

    Raises:
        InputError: it has not been materialised, or an ancestor's artifact is no longer in the store.
    """
    found = upstream(context, store, root)
    waiting = [found[root]]
    while waiting:
        made_from = waiting.pop().manifest.inputs
        for name in made_from.keys() & (set(names) - found.keys()):
            artifact = store.with_content(
                name, context.partition_key, made_from[name], found[root].manifest.inputs.values()
            )
            if artifact is None:
                raise InputError(
                    f"the {name} from which the {root} of {context.partition_key} was made is no longer in the "
                    f"artifact store; materialise {root} again{_made_by(context, root)}"
                )
            found[name] = artifact
            waiting.append(artifact)
    if missing := sorted(set(names) - found.keys()):
        raise InputError(
            f"the {root} of {context.partition_key} does not tell from which {', '.join(missing)} it was made; "
            f"materialise {root} again{_made_by(context, root)}"
        )
    return found


@dataclass
class Outcome:
    """What a build tells about its artifact.

    Attributes:
        values: numbers and short texts for the asset's metadata.
        markdown: title -> text shown rendered.
        metrics: figures for MLflow.
        files: title -> file of the artifact whose path is shown.
    """

    values: dict[str, Any] = field(default_factory=dict)
    markdown: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


Build = Callable[[Path, TrackedRun], Outcome]


def materialise(
    context: dg.AssetExecutionContext,
    store: ArtifactStore,
    tracking: MlflowTracking,
    *,
    code_version: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Artifact | str],
    force: bool,
    build: Build,
    name: str | None = None,
    folders: Folders | None = None,
) -> tuple[dg.MaterializeResult, Artifact]:
    """Reuse the artifact of this identity, or have ``build`` fill a folder with a new one, tracked as one MLflow run.

    Args:
        settings: everything that changes the result besides code and inputs; JSON.
        inputs: upstream artifacts, or content hashes of other inputs, by name.
        name: the asset, where a step materialises several.
        folders: given by assets that train: one run at a time works in the artifact's working folder, a second one
            waits and uses the first one's artifact, or its checkpoint if it failed.
    """
    asset = name or context.asset_key.to_user_string()
    partition = context.partition_key
    versions = {key: value if isinstance(value, str) else value.data_version for key, value in inputs.items()}
    identity = fingerprint(asset, code_version, settings, versions)

    def found() -> Artifact | None:
        try:
            return store.find(asset, partition, identity)
        except DamagedArtifact as error:
            context.log.warning(f"{error} It is built again now.")
            return None

    def made() -> tuple[Artifact, str]:
        """The new artifact, and what MLflow could not be told."""
        progress_log.info("%s", f"{asset}: building")
        with (
            tracking.run(context, asset, partition, identity, code_version, dict(settings)) as run,
            store.write(
                asset, partition, identity, inputs=versions, config=settings, code_version=code_version, replace=force
            ) as draft,
        ):
            for key, value in inputs.items():
                run.log_input(key, str(value.path) if isinstance(value, Artifact) else key, versions[key])
            outcome = build(draft.path, run)
            run.log_metrics(outcome.metrics)
            draft.metadata.update(
                values=outcome.values, markdown=outcome.markdown, files=outcome.files, mlflow_run=run.url
            )
        return draft.artifact, run.lost

    before = found()
    if before is not None and not force:
        if folders is not None:
            forget_idle_checkpoints(folders.workdir(asset, identity))  # of a run that ended just before its last step
        return _result(before, asset, reused=True), before
    if folders is None:
        artifact, lost = made()
        return _result(artifact, asset, lost), artifact
    workdir = folders.workdir(asset, identity)
    with turn(context, workdir):
        other = found()
        # Forced or not: what was built since we looked is as new as what we would build.
        if other is not None and (before is None or other.manifest != before.manifest):
            return _result(other, asset, reused=True), other
        if force and context.retry_number == 0:
            forget_checkpoints(workdir)
        artifact, lost = made()
        forget_checkpoints(workdir)  # only now: with a full disk, earlier would cost the training
    return _result(artifact, asset, lost), artifact


def markdown_table(table: "pd.DataFrame") -> str:
    """A small table for metadata: cells without line breaks or bars."""
    header = list(map(str, table.columns))
    rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.to_numpy(object)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def training_progress(run: TrackedRun) -> Callable[[Progress], None]:
    """Shows a worker's progress in the terminal and sends it to MLflow: some steps, and every epoch's figures."""
    started = time.monotonic()
    shown_at = sent_at = -math.inf

    def show(progress: Progress) -> None:
        nonlocal shown_at, sent_at
        now = time.monotonic()
        # Of what has no epochs the last step is all that tells of its end.
        ended = progress.step is None or (progress.epoch is None and progress.step == progress.steps)
        if ended or now - shown_at >= TERMINAL_INTERVAL_S:
            few = {name: progress.metrics[name] for name in TERMINAL_METRICS if name in progress.metrics}
            progress_log.info("%s", "  " + replace(progress, metrics=few).line())
            shown_at = now
        if progress.epoch is None:
            return
        if progress.step is None:
            run.log_metrics(progress.metrics, step=progress.epoch)
            if progress.loss is not None:
                run.log_metrics({"epoch_loss": progress.loss}, step=progress.epoch)
        elif now - sent_at >= max(STEP_INTERVAL_S, STEP_SHARE * (now - started)):
            figures = {"loss": progress.loss, "eta_s": progress.eta_s, **progress.metrics}
            step = (progress.epoch - 1) * (progress.steps or 0) + progress.step
            run.log_metrics({name: value for name, value in figures.items() if value is not None}, step=step)
            sent_at = now

    return show


def _result(artifact: Artifact, asset: str, lost: str = "", reused: bool = False) -> dg.MaterializeResult:
    if reused:
        progress_log.info("%s", f"{asset}: reused, nothing has changed")
    stored = artifact.metadata
    metadata: dict[str, Any] = {
        "fingerprint": artifact.fingerprint,
        "reused": reused,
        "artifact": dg.MetadataValue.path(str(artifact.path)),
        **stored["values"],
        **{title: dg.MetadataValue.path(str(artifact.path / name)) for title, name in stored["files"].items()},
        **{title: dg.MetadataValue.md(text) for title, text in stored["markdown"].items()},
    }
    if stored["mlflow_run"].startswith("http"):
        metadata["mlflow_run"] = dg.MetadataValue.url(stored["mlflow_run"])
    if lost:
        metadata["not recorded in MLflow"] = lost
    return dg.MaterializeResult(asset_key=asset, metadata=metadata, data_version=dg.DataVersion(artifact.data_version))


def _dagster_type(annotation: Any) -> Any:
    """Dagster's configuration knows no optional Literal and no tuple: values are checked when the settings are made."""
    if typing.get_origin(annotation) is types.UnionType:  # of one type and None, which every field may be
        return _dagster_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        return list[_dagster_type(typing.get_args(annotation)[0])]  # type: ignore[misc]
    if typing.get_origin(annotation) is Literal:
        return type(typing.get_args(annotation)[0])
    return annotation


def _describe(info: Any) -> str:
    text = f"{info.description or ''} Default: {info.default!r} unless the data set sets its own."
    annotation = info.annotation
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        text += f" One of: {', '.join(map(repr, typing.get_args(annotation)))}."
    return text.strip()
