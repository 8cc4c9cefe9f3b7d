"""Group `raw`: the three clean tables."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from assets.data.raw import VERSION, declaration, load_raw
from assets.framework.checks import artifact_check
from assets.framework.reuse import Outcome
from assets.framework.shown_tables import ShownTable
from assets.framework.stage import Job, Request, stage
from rarec.config import Settings
from rarec.data.checks import (
    check_published_counts,
    check_schema,
    check_ties,
    check_time_order,
    check_unique_interactions,
)
from rarec.data.schemas import INTERACTIONS, ITEMS, USERS
from rarec.data.sources.files import link_or_copy
from rarec.data.tables import Tables, build_tables, cleaned
from rarec.training.progress import progress_log
from resources.artifacts.store import Artifact

SCHEMAS = {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS}
NUMBERED = ("user_index", "item_index")  # numbers that cleaning gives
TABLE_OF = {"interactions": "interactions", "item_catalog": "items", "user_profiles": "users"}


def _tables(request: Request[Settings]) -> Callable[[], Tables]:
    """Build all three tables once, when the first missing one is requested."""
    return functools.cache(lambda: build_tables(request.spec, load_raw(request.inputs["raw_interactions"])))


@stage(
    group="raw",
    version=VERSION,
    inputs=("raw_interactions",),
    kinds={"parquet", "pandas"},
    prepare=_tables,
    config=declaration,
    parts={
        "interactions": "Clean interactions: typed, sorted by user and time, k-core if the protocol requires it.",
        "item_catalog": "Items that occur in the interactions, with title and attributes; item_index is the row.",
        "user_profiles": "Users that occur in the interactions, with their profiles; user_index is the row.",
    },
)
def clean_tables(job: Job[Settings]) -> Outcome:
    """One of the three clean tables. k-core and ids tie them to each other, so one step cuts all three."""
    clean, name = job.prepared(), TABLE_OF[job.name]
    link_or_copy(clean.folder / f"{name}.parquet", job.folder / f"{name}.parquet")
    rows = clean.counts[name]
    (job.folder / "counts.json").write_text(json.dumps({**clean.counts, "time": clean.time}, indent=1))
    values: dict[str, Any] = {"rows": rows}
    if name == "interactions":
        values |= {**clean.counts, "time": clean.time}
        progress_log.info("%s", f"  {cleaned(clean.counts)}")
    words = {column: str(one.description) for column, one in SCHEMAS[name].columns.items()}
    sources = {column: [("raw_interactions", column)] for column in words if column not in NUMBERED}
    return Outcome(values, metrics={"rows": rows}, table=ShownTable(f"{name}.parquet", words, sources))


def load_table(artifact: Artifact, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A parquet table of an artifact, or some columns of it."""
    return pd.read_parquet(artifact.file(f"{name}.parquet"), columns=None if columns is None else list(columns))


def load_counts(artifact: Artifact) -> dict[str, Any]:
    """Rows read and dropped, sizes, and what `timestamp` means."""
    counts: dict[str, Any] = json.loads(artifact.file("counts.json").read_text())
    return counts


def has_clock(interactions: Artifact) -> bool:
    """Whether timestamps are clock times, not only an order within each user."""
    return bool(load_counts(interactions)["time"] == "clock")


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
        lambda _spec, artifact: check_time_order(load_table(artifact, "interactions", ("user_index", "timestamp"))),
    ),
    artifact_check(
        "ties",
        "interactions",
        "Few events of a user have the same time. Only a warning: among ties, the order is that of the file.",
        lambda _spec, artifact: (
            check_ties(load_table(artifact, "interactions", ("user_index", "timestamp")))
            if has_clock(artifact)
            else (True, {})
        ),
        blocking=False,
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
