"""Group `raw`: new files as they arrive, files as published, then the three clean tables."""

import functools
import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from assets.framework.checks import artifact_check
from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    markdown_table,
    materialise,
    progress_log,
    refuse_bad_input,
    upstream,
)
from rarec.data.checks import check_published_counts, check_schema, check_time_order, check_unique_interactions
from rarec.data.incoming.merge import merge_incoming
from rarec.data.raw import RawTables, read_raw
from rarec.data.schemas import INTERACTIONS, ITEMS, USERS
from rarec.data.sources.download import locate_source
from rarec.data.sources.files import sha256_of
from rarec.data.spec import DatasetSpec
from rarec.data.tables import Tables, build_tables
from rarec.errors import InputError, one_line
from resources.artifacts.store import Artifact, ArtifactStore
from resources.incoming import Report, ingest, wait_for_settled, withdraw
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

CODE_VERSION = "2"
SHOWN = 20  # files and bad rows in metadata
CLEAN = ("interactions", "item_catalog", "user_profiles")


class IncomingConfig(dg.Config):
    """Run configuration of `incoming_interactions`."""

    judge_again: bool = Field(
        default=False,
        description="Also judge anew what was withdrawn, refused or had bad rows, where its file lies there unchanged.",
    )
    withdraw: list[str] = Field(
        default=[],
        description="Files whose rows are taken back and deleted, each by its name or the beginning of its sha256.",
    )


@dg.asset(
    group_name="raw",
    kinds={"sqlite", "parquet"},
    owners=[OWNER],
    code_version=CODE_VERSION,
    check_specs=[
        dg.AssetCheckSpec(
            "files_accepted",
            asset="incoming_interactions",
            description="No file was refused as a whole, or could not be read, in this run. A warning: others count.",
        )
    ],
)
@refuse_bad_input
def incoming_interactions(
    context: dg.AssetExecutionContext, config: IncomingConfig, folders: Folders
) -> dg.MaterializeResult:
    """The ledger of files that arrived after publication: each content judged once, bad rows set aside, rows kept."""
    name = context.partition_key
    spec, source, ledger = folders.spec(name), folders.incoming_files(name), folders.ledger(name)
    if config.withdraw and config.judge_again:
        raise InputError("withdraw and judge_again: one takes back what the other brings in; run one after the other.")
    withdrawn = withdraw(ledger, config.withdraw) if config.withdraw else []
    try:
        settled, settling = wait_for_settled(source, ledger, folders.settle_s)
        report = Report()
        if settled or config.judge_again:
            report = ingest(source, ledger, spec, settled, judge_again=config.judge_again)
    except Exception as error:  # each kind of store has errors of its own
        raise dg.Failure(
            f"new files in {source.url} cannot be taken in: {one_line(error)}; what was judged is kept, run it to go on"
        ) from error
    state, files = ledger.state(), ledger.files()
    metadata: dict[str, Any] = {
        "reused": not report.judged and not withdrawn,
        "folder": source.url,
        "files_judged_now": len(report.judged),
        "files_not_settled": len(settling) + len(report.changing),
    }
    if report.unreadable:
        shown = [f"{file} ({error})" for file, error in list(report.unreadable.items())[:SHOWN]]
        metadata["files_not_readable"] = ", ".join(shown)
        context.log.warning(
            f"{len(report.unreadable)} files in {source.url} cannot be read (first: {shown[0]}); they are taken in by "
            "a later run, once this process can read them"
        )
    if len(files):
        in_place = files[files["superseded_by"].isna()]
        refused = in_place[in_place["refused"] != ""]
        taken_back = in_place[in_place["withdrawn"].notna()]
        accepted = files[files["entry"].isin(state.entries)]
        metadata |= {
            "files": len(accepted),
            "files_refused": len(refused),
            "files_withdrawn": len(taken_back),
            "bad_rows": int(accepted["bad_rows"].sum()),
            "dagster/row_count": int(accepted["rows"].sum()),
            "ledger": dg.MetadataValue.path(str(ledger.folder)),
        }
        if report.judged:
            metadata["judged now"] = dg.MetadataValue.md(_first_rows(report.table))
        if len(refused):
            metadata["refused"] = dg.MetadataValue.md(_first_rows(refused[["names", "refused", "recorded"]][::-1]))
        if len(taken_back):
            newest_first = taken_back[["names", "sha256", "rows", "withdrawn"]].sort_values(
                "withdrawn", ascending=False
            )
            metadata["withdrawn"] = dg.MetadataValue.md(_first_rows(newest_first))
        if withdrawn:
            context.log.info(f"withdrawn now: {', '.join(withdrawn)}")
        text = f"{len(report.judged)} files judged now, {len(accepted)} hold {accepted['rows'].sum()} rows"
        progress_log.info("%s", f"incoming_interactions: {text}")
    left_out = [f"{name}: {reason}" for name, reason in (report.refused | report.unreadable).items()]
    accepted_all = dg.AssetCheckResult(
        passed=not left_out,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files": len(left_out), "reasons": "; ".join(left_out[:SHOWN])} if left_out else {},
    )
    return dg.MaterializeResult(
        metadata=metadata, data_version=dg.DataVersion(state.version or "empty"), check_results=[accepted_all]
    )


@dg.asset(
    deps=["incoming_interactions"],
    group_name="raw",
    kinds={"parquet", "pandas"},
    owners=[OWNER],
    code_version=CODE_VERSION,
)
@refuse_bad_input
def raw_interactions(
    context: dg.AssetExecutionContext,
    config: StageConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Interactions, items and users as published and arrived since, with provenance and a quarantine of bad rows."""
    spec = folders.spec(context.partition_key)
    located = locate_source(spec, Path(folders.data), Path(folders.cache))
    names = {**spec.files(located.source), **spec.optional_files(located.source)}
    paths = {name: located.folder / name for name in names.values() if (located.folder / name).is_file()}
    ledger = folders.ledger(spec.name)
    state = ledger.state()

    def build(folder: Path, run: TrackedRun) -> Outcome:
        raw = read_raw(spec, located.folder)
        provenance: dict[str, Any] = {
            "data_set": spec.title,
            "format": located.source.format,
            "files": raw.sources,
        }
        counts: dict[str, int] = {}
        tables = {"provenance": markdown_table(pd.DataFrame(raw.sources))}
        if state.version:
            incoming = ledger.read(state)
            merged = merge_incoming(spec, raw, incoming)
            raw, counts = merged.raw, merged.counts
            arrived = incoming.files.drop(columns="entry")
            provenance["incoming"] = {**counts, "files": json.loads(arrived.to_json(orient="records"))}
            tables["incoming files"] = _first_rows(arrived[::-1])
        for name in ("interactions", "items", "users", "quarantine"):
            table: pd.DataFrame | None = getattr(raw, name)
            if table is not None:
                table.to_parquet(folder / f"{name}.parquet", index=False)
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=1))
        values = {
            "rows": len(raw.interactions),
            "quarantined_rows": len(raw.quarantine),
            "format": located.source.format,
            **counts,
            "dagster/row_count": len(raw.interactions),
        }
        tables["preview"] = markdown_table(raw.interactions.head())
        if len(raw.quarantine):
            tables["quarantine"] = _first_rows(raw.quarantine)
        metrics: dict[str, float] = {"rows": len(raw.interactions), "quarantined_rows": len(raw.quarantine), **counts}
        return Outcome(values, tables, metrics)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=CODE_VERSION,
        settings=_identity(spec),
        # Without incoming rows the identity is that of the published files alone.
        inputs={name: sha256_of(path) for name, path in paths.items()}
        | ({"incoming_interactions": state.version} if state.version else {}),
        force=config.force,
        build=build,
    )
    return result


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            name,
            deps=["raw_interactions"],
            group_name="raw",
            kinds={"parquet", "pandas"},
            owners=[OWNER],
            code_version=CODE_VERSION,
            description=description,
        )
        for name, description in zip(
            CLEAN,
            (
                "Clean interactions: typed, sorted by user and time, k-core where the protocol wants it.",
                "Items that occur in the interactions, with title and attributes; item_index is the row number.",
                "Users that occur in the interactions, with their profiles; user_index is the row number.",
            ),
            strict=True,
        )
    ],
)
@refuse_bad_input
def clean_tables(
    context: dg.AssetExecutionContext,
    config: StageConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> tuple[dg.MaterializeResult, dg.MaterializeResult, dg.MaterializeResult]:
    """The three clean tables; they are cut from the raw ones together, since k-core and ids tie them to each other."""
    spec = folders.spec(context.partition_key)
    raw = upstream(context, store, "raw_interactions")["raw_interactions"]

    @functools.cache
    def tables() -> Tables:
        return build_tables(spec, load_raw(raw))

    results = []
    parts = {"interactions": "interactions", "item_catalog": "items", "user_profiles": "users"}
    for name, part in parts.items():

        def build(folder: Path, run: TrackedRun, part: str = part) -> Outcome:
            clean = tables()
            table: pd.DataFrame = getattr(clean, part)
            table.to_parquet(folder / f"{part}.parquet", index=False)
            (folder / "counts.json").write_text(json.dumps({**clean.counts, "time": clean.time}, indent=1))
            values: dict[str, Any] = {"rows": len(table), "dagster/row_count": len(table)}
            if part == "interactions":
                values |= {**clean.counts, "time": clean.time}
            return Outcome(values, {"preview": markdown_table(table.head())}, {"rows": len(table)})

        result, _ = materialise(
            context,
            store,
            tracking,
            code_version=CODE_VERSION,
            settings=_identity(spec),
            inputs={"raw_interactions": raw},
            force=config.force,
            build=build,
            name=name,
        )
        results.append(result)
    return results[0], results[1], results[2]


def _identity(spec: DatasetSpec) -> dict[str, Any]:
    """What of a data set's declaration decides its tables."""
    return {"spec": spec.model_dump(mode="json", exclude={"overrides", "published", "template"})}


def _first_rows(table: pd.DataFrame) -> str:
    more = len(table) - SHOWN
    return markdown_table(table.head(SHOWN)) + (f"\n\n… and {more} more" if more > 0 else "")


def load_raw(artifact: Artifact) -> RawTables:
    """The raw tables of an artifact of `raw_interactions`."""

    def read(name: str) -> pd.DataFrame | None:
        file = artifact.path / f"{name}.parquet"
        return pd.read_parquet(file) if file.is_file() else None

    interactions, quarantine = read("interactions"), read("quarantine")
    assert interactions is not None
    assert quarantine is not None
    provenance = json.loads(artifact.file("provenance.json").read_text())
    arrived = provenance.get("incoming", {}).get("incoming_rows", 0)
    return RawTables(interactions, read("items"), read("users"), quarantine, provenance["files"], arrived)


def load_table(artifact: Artifact, name: str) -> pd.DataFrame:
    """A parquet table of an artifact."""
    return pd.read_parquet(artifact.file(f"{name}.parquet"))


def load_counts(artifact: Artifact) -> dict[str, Any]:
    """Rows read and dropped, sizes, and what `timestamp` means."""
    counts: dict[str, Any] = json.loads(artifact.file("counts.json").read_text())
    return counts


CHECKS = [
    artifact_check(
        "schema",
        "interactions",
        "Columns, types and values are as `rarec.data.schemas` says.",
        lambda _spec, artifact: check_schema(load_table(artifact, "interactions"), INTERACTIONS),
    ),
    artifact_check(
        "unique_key",
        "interactions",
        "No interaction occurs twice.",
        lambda spec, artifact: check_unique_interactions(spec, load_table(artifact, "interactions")),
    ),
    artifact_check(
        "time_order",
        "interactions",
        "Within a user, time never runs backwards.",
        lambda _spec, artifact: check_time_order(load_table(artifact, "interactions")),
    ),
    artifact_check(
        "published_counts",
        "interactions",
        "Counts equal the published ones, for data sets that have them; the difference is shown.",
        lambda spec, artifact: check_published_counts(spec, load_counts(artifact)),
    ),
    artifact_check(
        "schema",
        "item_catalog",
        "Columns, types and values are as `rarec.data.schemas` says; ids are unique.",
        lambda _spec, artifact: check_schema(load_table(artifact, "items"), ITEMS),
    ),
    artifact_check(
        "schema",
        "user_profiles",
        "Columns, types and values are as `rarec.data.schemas` says; ids are unique.",
        lambda _spec, artifact: check_schema(load_table(artifact, "users"), USERS),
    ),
]
