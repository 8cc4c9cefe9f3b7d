"""Group `raw`: the published files, with the rows that have arrived since."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from assets.data.incoming import first_rows
from assets.framework.checks import artifact_check
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.shown_tables import ShownTable
from assets.framework.stage import Job, Request, stage
from rarec.config import Settings
from rarec.data.incoming.ledger import Ledger, State
from rarec.data.incoming.merge import merge_incoming
from rarec.data.raw import ROLES, RawTables, published_files, read_raw
from rarec.data.schemas import ITEM_ID, RATING, TIME, USER_ID
from rarec.data.source_spec import Role
from rarec.data.sources.download import Located, locate_source
from rarec.data.sources.files import link_or_copy, sha256_of, whole_folder
from rarec.data.spec import DatasetSpec
from rarec.training.progress import progress_log
from resources.artifacts.store import Artifact

RAW_COLUMNS = {"user_id": USER_ID, "item_id": ITEM_ID, "rating": RATING, "timestamp": TIME}
VERSION = "3"  # of the raw tables and of the clean ones
NOT_CONTENT = ("overrides", "published", "template")  # parts of a declaration that do not affect its tables


@dataclass(frozen=True)
class _Published:
    """The published files and their hashes (role -> path -> sha256), and the ledger's state at one moment."""

    located: Located
    hashes: dict[Role, dict[str, str]]
    ledger: Ledger
    state: State


def _locate(request: Request[Settings]) -> _Published:
    spec, workspace = request.spec, request.workspace
    ledger = workspace.ledger(spec.name)
    located = locate_source(spec, Path(workspace.data), Path(workspace.cache))
    files = published_files(spec, located.source, located.folder)
    hashes = {
        role: {str(path.relative_to(located.folder)): sha256_of(path) for path in paths}
        for role, paths in files.items()
    }
    return _Published(located, hashes, ledger, ledger.state())


def _versions(request: Request[Settings]) -> dict[str, Artifact | str]:
    """Hashes of the files. Without incoming rows, only the published files are part of the identity."""
    state = request.prepared.state
    hashes: dict[str, Artifact | str] = {
        name: sha256 for files in request.prepared.hashes.values() for name, sha256 in files.items()
    }
    return hashes | ({"incoming_interactions": state.version} if state.version else {})


def declaration(request: Request[Settings]) -> dict[str, Any]:
    """The parts of a data set's declaration that affect its tables."""
    return {"spec": request.spec.model_dump(mode="json", exclude=set(NOT_CONTENT))}


@stage(
    group="raw",
    version=VERSION,
    after=("incoming_interactions",),
    kinds={"parquet", "pandas"},
    prepare=_locate,
    versions=_versions,
    config=declaration,
)
def raw_interactions(job: Job[Settings]) -> Outcome:
    """Interactions, items and users as published and arrived since, with provenance and a quarantine of bad rows."""
    located, ledger, state = job.prepared.located, job.prepared.ledger, job.prepared.state
    raw = _read_once(job.spec, job.prepared, Path(job.workspace.cache))
    provenance: dict[str, Any] = {"data_set": job.spec.title, "format": located.source.format, "files": raw.sources}
    counts: dict[str, int] = {}
    tables = {"provenance": markdown_table(pd.DataFrame(raw.sources))}
    if state.version:
        incoming = ledger.read(state)
        merged = merge_incoming(job.spec, raw, incoming, job.folder)
        raw, counts = merged.raw, merged.counts
        arrived = incoming.files.drop(columns="entry")
        provenance["incoming"] = {**counts, "files": json.loads(arrived.to_json(orient="records"))}
        tables["incoming files"] = first_rows(arrived[::-1])
    else:
        for role in ROLES:
            if (file := raw.file(role)) is not None:
                link_or_copy(file, job.folder / file.name)
    if raw.warnings:
        provenance["warnings"] = list(raw.warnings)
    raw.quarantine.to_parquet(job.folder / "quarantine.parquet", index=False)
    (job.folder / "provenance.json").write_text(json.dumps(provenance, indent=1))
    rows = raw.count
    values = {
        "rows": rows,
        "quarantined_rows": len(raw.quarantine),
        "format": located.source.format,
        **counts,
        "dagster/row_count": rows,  # with those that arrived since
    }
    if len(raw.quarantine):
        tables["quarantine"] = first_rows(raw.quarantine)
        progress_log.info("%s", f"  {len(raw.quarantine):,} rows quarantined, {rows:,} read; the first bad ones:")
        for told in _first_bad(raw.quarantine):
            progress_log.info("%s", f"    {told}")
    for sentence in raw.warnings:
        progress_log.info("%s", f"  warning: {sentence}")
    metrics: dict[str, float] = {"rows": rows, "quarantined_rows": len(raw.quarantine), **counts}
    return Outcome(values, tables, metrics, table=ShownTable("interactions.parquet", RAW_COLUMNS))


def _read_once(spec: DatasetSpec, published: _Published, cache: Path) -> RawTables:
    """The published tables, kept in the cache: when rows arrive, the published files are not read again."""
    identity = {
        "version": VERSION,
        "spec": spec.model_dump(mode="json", exclude=set(NOT_CONTENT)),
        "files": published.hashes,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    target = cache / "published" / spec.name / digest
    if not target.is_dir():
        shutil.rmtree(target.parent, ignore_errors=True)  # what earlier files held
        with whole_folder(target) as folder:
            raw = read_raw(spec, published.located.folder, folder)
            raw.quarantine.to_parquet(folder / "quarantine.parquet", index=False)
            (folder / "sources.json").write_text(json.dumps({"files": raw.sources, "warnings": raw.warnings}))
    told = json.loads((target / "sources.json").read_text())
    return RawTables(
        target, pd.read_parquet(target / "quarantine.parquet"), told["files"], warnings=tuple(told["warnings"])
    )


def load_raw(artifact: Artifact) -> RawTables:
    """The raw tables of an artifact of `raw_interactions`."""
    provenance = json.loads(artifact.file("provenance.json").read_text())
    arrived = provenance.get("incoming", {}).get("incoming_rows", 0)
    quarantine = pd.read_parquet(artifact.file("quarantine.parquet"))
    warnings = tuple(provenance.get("warnings", ()))
    return RawTables(artifact.path, quarantine, provenance["files"], arrived, warnings)


def _check_set_aside(_: DatasetSpec, artifact: Artifact) -> tuple[bool, dict[str, Any]]:
    quarantine = load_raw(artifact).quarantine
    first = _first_bad(quarantine)
    return quarantine.empty, {"rows": len(quarantine), **({"first": first} if first else {})}


def _first_bad(quarantine: pd.DataFrame) -> list[str]:
    """Place and reason of the first three bad rows."""
    return [f"{row.file}, line {row.line}: {row.reason}" for row in quarantine.head(3).itertuples(index=False)]


def _check_as_written(_: DatasetSpec, artifact: Artifact) -> tuple[bool, dict[str, Any]]:
    warnings = load_raw(artifact).warnings
    return not warnings, {"warnings": list(warnings)} if warnings else {}


CHECKS = [
    artifact_check(
        "rows_set_aside",
        "raw_interactions",
        "Every row could be used. Only a warning: rows that could not are in the quarantine, with line and reason.",
        _check_set_aside,
        blocking=False,
    ),
    artifact_check(
        "read_as_written",
        "raw_interactions",
        "Ids and columns were read as written. Only a warning: it says what was unified, repeated or missing.",
        _check_as_written,
        blocking=False,
    ),
]
