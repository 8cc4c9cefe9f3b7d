"""`make run`: run one job of a data set in this process, show its progress and print the figures."""

import json
import logging
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from pipelines.dagster_home import prepare_dagster_home
from rarec.config import refusals
from rarec.data.spec import DatasetSpec
from rarec.data.templates import find_template
from rarec.errors import InputError, closest, one_line
from rarec.training.progress import progress_log
from resources import disk
from resources.settings import Installation

EXAMPLE = """Example: CONFIG='{"raserec_finetuned": {"memories": 50}}'"""
EVERY = "all data sets"  # for the job `clean`, which has no partitions
BUILDS_NOTHING = ("clean", "rollback")  # jobs that must work on a disk that is almost full
LEAST_BYTES = 100_000_000  # `demo` takes about 75 MB
INTERRUPTED = "interrupted; run the same command again to resume from the last checkpoint"


def main(
    dataset: Annotated[str, typer.Option(help="Data set, one of the partitions.")] = "demo",
    track: Annotated[str, typer.Option(help="Job: raserec, rella, everything, drift, …")] = "everything",
    config: Annotated[str, typer.Option(help="Run configuration as JSON: {asset or op: {setting: value}}.")] = "{}",
) -> None:
    """Run one job of one data set. Print its tables of figures, the paths of reports and how to open the UIs."""
    warnings.filterwarnings("ignore")
    logging.getLogger("rarec.datasets").addHandler(logging.NullHandler())  # `_prepare` tells it once
    started = time.perf_counter()
    dataset = EVERY if track == "clean" else dataset
    print(f"{dataset}, {track}: starting", flush=True)  # at once, as the imports take seconds
    try:
        installation = Installation.from_environment()
        home = prepare_dagster_home(installation, 0 if track in BUILDS_NOTHING else LEAST_BYTES)
        job, run_config = _prepare(dataset, track, config, installation)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    import dagster as dg

    from pipelines.run_launcher_local import HOST_TAG

    print(f"everything is stored in {installation.root}", flush=True)
    _show_progress(started)
    with _disk_told_in_words(installation, home), _instance(home) as instance:
        try:
            result = job.execute_in_process(
                instance=instance,
                partition_key=None if dataset == EVERY else dataset,
                run_config=run_config,
                raise_on_error=False,
                tags={HOST_TAG: socket.gethostname()},
            )
        except dg.DagsterInvalidConfigError as error:
            faults = "; ".join(fault.message.split(" Expected:")[0] for fault in error.errors)
            raise SystemExit(f"error: CONFIG: {faults}") from error
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            raise SystemExit(INTERRUPTED) from None
        for line in _check_lines(result, "WARN"):
            print(f"warning: {line}")
        if not result.success:
            _print_tables(_pages(result))
            raise SystemExit(_failures(result, installation))
        _summarise(result, dataset, track, installation, time.perf_counter() - started)


@contextmanager
def _disk_told_in_words(installation: Installation, home: Path) -> Iterator[None]:
    """End with one sentence if Dagster's own storage fails because a disk is full or write-protected."""
    try:
        yield
    except Exception as error:
        if words := disk.in_words(error, {"RAREC_HOME": installation.root, "DAGSTER_HOME": home}):
            raise SystemExit(f"error: {words}") from error
        raise


def _instance(home: Path) -> Any:
    """The Dagster instance of this home."""
    import dagster as dg

    try:
        return dg.DagsterInstance.get()
    except dg.DagsterError as error:
        raise SystemExit(f"error: Dagster refuses {home / 'dagster.yaml'}: {one_line(error)}") from error


def _prepare(dataset: str, track: str, config: str, installation: Installation) -> tuple[Any, dict[str, Any]]:
    """The job and its run configuration. Wrong arguments are refused here, before anything runs."""
    from assets.framework.configuration import make_settings, with_defaults
    from assets.framework.stage import stage_of
    from pipelines.definitions import defs, unusable, usable_specs  # seconds to import, and DAGSTER_HOME is set now
    from pipelines.jobs import OF_ONE_STEP, cascade

    # All jobs but `demo`, which only triggers another one.
    every = {job.name: job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    jobs = {name: job for name, job in every.items() if job.asset_layer.executable_asset_keys or name in OF_ONE_STEP}
    if track not in jobs:
        raise InputError(f"unknown TRACK {track!r}{closest(track, jobs)}; known: {', '.join(sorted(jobs))}")
    given = _parse(config)
    declared = usable_specs(installation.datasets)
    for fault in (fault for name, fault in declared.faults.items() if name != dataset):
        print(unusable(fault), file=sys.stderr, flush=True)
    overrides = {} if dataset == EVERY else declared.find(dataset).overrides
    if track in OF_ONE_STEP:
        return jobs[track], _run_config(_step_config(track, given, *OF_ONE_STEP[track]))
    known = {key.to_user_string() for key in jobs[track].asset_layer.executable_asset_keys}
    _refuse_early(declared.find(dataset), track, known)
    # This replaces the job's own configuration, so it must include it.
    steps = cascade()
    own = steps[track].config if track in steps else {}
    ops: dict[str, Any] = {defs.resolve_assets_def(asset).op.name: {"config": dict(own[asset])} for asset in own}
    for asset, values in given.items():
        if asset not in known:
            it_has = ", ".join(sorted(known))
            raise InputError(f"CONFIG: TRACK={track} has no asset {asset!r}{closest(asset, known)}; it has {it_has}")
        settings = {name: value for name, value in values.items() if name != "force"}
        stage = stage_of(asset)
        make_settings(
            stage.settings,
            with_defaults(settings, overrides, asset, stage.defaults_of),
            f"CONFIG: {asset}",
            also=("force",),
        )
        # One step may make several assets; it has one configuration.
        step = defs.resolve_assets_def(asset).op.name
        ops.setdefault(step, {"config": {}})["config"] |= values
    return jobs[track], _run_config(ops)


def _refuse_early(spec: DatasetSpec, track: str, assets: set[str]) -> None:
    """Raise InputError if the data set lacks what the job needs late, after hours of training perhaps."""
    if "textual_samples" not in assets:
        return
    instead = "" if track != "everything" else " Or run TRACK=raserec, which needs neither ratings nor prompts."
    if spec.label_threshold is None:
        raise InputError(
            f"{spec.name}: TRACK={track} predicts what users like, but the data set's file has no `label_threshold`; "
            f"set it and `rating_scale`.{instead}"
        )
    try:
        find_template(spec.domain, spec.template)
    except InputError as error:
        raise InputError(f"{spec.name}: {error}.{instead}") from error


def _run_config(ops: dict[str, Any]) -> dict[str, Any]:
    # Dagster's console log would bury the progress lines; the UI shows all of it.
    return {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, "ops": ops}


def _step_config(
    track: str, given: Mapping[str, dict[str, Any]], step: str, settings: type[BaseModel]
) -> dict[str, Any]:
    """Configuration of the only step of a job."""
    for name, values in given.items():
        if name != step:
            raise InputError(f"CONFIG: TRACK={track} has no step {name!r}{closest(name, [step])}; it has {step}")
        for key in values.keys() - settings.model_fields.keys():
            known = ", ".join(settings.model_fields)
            raise InputError(
                f"CONFIG: {step}: {key}: no such setting{closest(key, settings.model_fields)}; known: {known}"
            )
        try:
            settings(**values)
        except ValidationError as error:
            raise InputError(f"CONFIG: {step}: {refusals(error)}") from error
    return {name: {"config": values} for name, values in given.items()}


def _parse(config: str) -> dict[str, dict[str, Any]]:
    try:
        settings = json.loads(config)
    except json.JSONDecodeError as error:
        raise InputError(f"CONFIG is not JSON: {error}. {EXAMPLE}") from error
    if not isinstance(settings, dict) or not all(isinstance(values, dict) for values in settings.values()):
        raise InputError(f"CONFIG must be an object of settings by asset, not {config}. {EXAMPLE}")
    return settings


def _show_progress(started: float) -> None:
    """Print what is logged to `rarec.progress`, with the time since the start."""

    class Elapsed(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            seconds = int(time.perf_counter() - started)
            return f"[{seconds // 60:3d}:{seconds % 60:02d}] {record.getMessage()}"

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Elapsed())
    progress_log.addHandler(handler)
    progress_log.setLevel(logging.INFO)
    progress_log.propagate = False


def _check_lines(result: Any, severity: str) -> list[str]:
    """Checks of a severity that have failed, with what they found."""
    return [
        f"{check.asset_key.to_user_string()}: check {check.check_name} failed: "
        + "; ".join(f"{name}: {_in_words(value.value)}" for name, value in check.metadata.items())
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.severity.value == severity
    ]


def _in_words(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _failures(result: Any, installation: Installation) -> str:
    """What failed and why. A stack trace is included only if the failure does not explain itself."""
    lines = _check_lines(result, "ERROR")
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        error = data.error
        while error.cause:
            error = error.cause
        if error.cls_name in ("KeyboardInterrupt", "DagsterExecutionInterruptedError"):
            return INTERRUPTED
        if data.user_failure_data:
            lines.append(f"{_assets_of(event.step_key)}: {data.user_failure_data.description}")
        elif error.cls_name != "DagsterAssetCheckFailedError":
            lines.append(f"{_assets_of(event.step_key)}: {error.to_string()}")
    return (
        "error: "
        + ("\n".join(lines) or "the run failed")
        + f"\nDetails: make ui (runs are kept in {installation.dagster})"
    )


def _assets_of(step: str) -> str:
    """What a step makes, by the names that users know."""
    from assets.framework.stage import STAGES

    return ", ".join(STAGES[step].assets) if step in STAGES else step


def _summarise(result: Any, dataset: str, track: str, installation: Installation, seconds: float) -> None:
    from pipelines.jobs import OF_ONE_STEP

    reused: list[str] = []
    built: list[str] = []
    judged: list[str] = []
    moved: list[str] = []
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        name = materialization.asset_key.to_user_string()
        metadata = materialization.metadata
        if "before" in metadata:  # a champion
            now, before = metadata["version"].value, metadata["before"].value
            what = "now serves" if metadata["moved"].value else "still serves"
            moved.append(f"{name}: version {now} {what}; before: {before}; {metadata['reason'].value}")
        is_reused = "reused" in metadata and metadata["reused"].value
        (reused if is_reused else built).append(name)
        words = [word for word in ("verdict", "decision") if word in metadata]
        judged += [f"{name}: {metadata[word].value}; {metadata['reason'].value}" for word in words]
    pages = _pages(result)
    _print_tables(pages)
    print()
    alone = track in OF_ONE_STEP
    for line in (*judged, *moved, *(_told_by_step(result) if alone else ())):
        print(line)
    assets = "" if alone else f"; {len(built)} assets built, {len(reused)} reused"
    print(f"{dataset} {track}: done in {seconds:.0f} s{assets}")
    if track == "rollback" and "raserec_champion" in built:
        print(f"lists:  make run DATASET={dataset} TRACK=recommend   (recommendations of this version)")
    for page in pages.values():
        print(f"report: {page}")
    print(f"UIs:    make ui   (Dagster at {installation.dagster_ui}, MLflow at {installation.mlflow_ui})")


def _pages(result: Any) -> dict[str, Path]:
    """The report of each asset that has one."""
    return {
        event.materialization.asset_key.to_user_string(): Path(str(event.materialization.metadata["report"].value))
        for event in result.get_asset_materialization_events()
        if "report" in event.materialization.metadata
    }


def _print_tables(pages: Mapping[str, Path]) -> None:
    """The figures of the tracks that are finished."""
    shown = (
        ("ranking_metrics", _ranking_tables),
        ("peer_metrics", _ranking_tables),
        ("ctr_metrics", _ctr_tables),
        ("peer_ctr_metrics", _ctr_tables),
    )
    for name, tables in shown:
        if name in pages:
            print()
            print(tables(pages[name].with_name("report.json").read_text()))


def _told_by_step(result: Any) -> Iterator[str]:
    """The metadata of the steps' outputs: tables in full, the rest on one line per step."""
    import dagster as dg

    for event in result.all_node_events:
        told = event.step_output_data.metadata if event.is_successful_output else {}
        tables = [value.value for value in told.values() if isinstance(value, dg.MarkdownMetadataValue)]
        for table in tables:
            yield from (*_aligned(table), "")
        if facts := [f"{name}: {value.value}" for name, value in told.items() if value.value not in tables]:
            yield f"{event.step_key}: {', '.join(facts)}"


def _aligned(table: str) -> list[str]:
    """The lines of a Markdown table, aligned for the terminal."""
    rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.replace("---", "-" * width).ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _ranking_tables(report: str) -> str:
    """The tables of the test split; those of the validation split are in the report."""
    from rarec.reports.ranking.report import RankingReport, text_tables

    figures = RankingReport.model_validate_json(report)
    scores = tuple(score for score in figures.scores if score.split == "test")
    comparisons = tuple(one for one in figures.comparisons if one.split == "test")
    return text_tables(figures.model_copy(update={"scores": scores, "comparisons": comparisons}))


def _ctr_tables(report: str) -> str:
    from rarec.reports.ctr.report import CtrReport, ctr_text_tables

    figures = CtrReport.model_validate_json(report)
    sizes = tuple(size for size in figures.sizes if size.split == "test")
    return ctr_text_tables(figures.model_copy(update={"sizes": sizes}))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
