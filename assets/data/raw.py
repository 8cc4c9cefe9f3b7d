"""Group `raw`: the published files, with the rows that have arrived since."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from assets.data.incoming import first_rows
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.stage import Job, Request, stage
from rarec.config import Settings
from rarec.data.incoming.ledger import Ledger, State
from rarec.data.incoming.merge import merge_incoming
from rarec.data.raw import RawTables, read_raw
from rarec.data.sources.download import Located, locate_source
from rarec.data.sources.files import sha256_of
from rarec.training.progress import progress_log
from resources.artifacts.store import Artifact

VERSION = "2"  # of the raw tables and of the clean ones


@dataclass(frozen=True)
class _Published:
    """The published files, and the ledger's state at one moment."""

    located: Located
    ledger: Ledger
    state: State


def _locate(request: Request[Settings]) -> _Published:
    spec, workspace = request.spec, request.workspace
    ledger = workspace.ledger(spec.name)
    located = locate_source(spec, Path(workspace.data), Path(workspace.cache))
    return _Published(located, ledger, ledger.state())


def _versions(request: Request[Settings]) -> dict[str, Artifact | str]:
    """Hashes of the files. Without incoming rows, only the published files are part of the identity."""
    located, state = request.prepared.located, request.prepared.state
    names = {**request.spec.files(located.source), **request.spec.optional_files(located.source)}
    paths = {name: located.folder / name for name in names.values()}
    hashes: dict[str, Artifact | str] = {name: sha256_of(path) for name, path in paths.items() if path.is_file()}
    return hashes | ({"incoming_interactions": state.version} if state.version else {})


def declaration(request: Request[Settings]) -> dict[str, Any]:
    """The parts of a data set's declaration that affect its tables."""
    return {"spec": request.spec.model_dump(mode="json", exclude={"overrides", "published", "template"})}


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
    raw = read_raw(job.spec, located.folder)
    provenance: dict[str, Any] = {"data_set": job.spec.title, "format": located.source.format, "files": raw.sources}
    counts: dict[str, int] = {}
    tables = {"provenance": markdown_table(pd.DataFrame(raw.sources))}
    if state.version:
        incoming = ledger.read(state)
        merged = merge_incoming(job.spec, raw, incoming)
        raw, counts = merged.raw, merged.counts
        arrived = incoming.files.drop(columns="entry")
        provenance["incoming"] = {**counts, "files": json.loads(arrived.to_json(orient="records"))}
        tables["incoming files"] = first_rows(arrived[::-1])
    for name in ("interactions", "items", "users", "quarantine"):
        table: pd.DataFrame | None = getattr(raw, name)
        if table is not None:
            table.to_parquet(job.folder / f"{name}.parquet", index=False)
    (job.folder / "provenance.json").write_text(json.dumps(provenance, indent=1))
    values = {
        "rows": len(raw.interactions),
        "quarantined_rows": len(raw.quarantine),
        "format": located.source.format,
        **counts,
        "dagster/row_count": len(raw.interactions),
    }
    tables["preview"] = markdown_table(raw.interactions.head())
    if len(raw.quarantine):
        tables["quarantine"] = first_rows(raw.quarantine)
        progress_log.info("%s", f"  {len(raw.quarantine):,} rows quarantined, {len(raw.interactions):,} read")
    metrics: dict[str, float] = {"rows": len(raw.interactions), "quarantined_rows": len(raw.quarantine), **counts}
    return Outcome(values, tables, metrics)


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
