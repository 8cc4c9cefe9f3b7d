"""Checks of the clean tables. Each returns (passed, details); details are plain values, fit for a report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa

from rarec.data.spec import DatasetSpec, ExpectedCounts

Result = tuple[bool, dict[str, Any]]
SHOWN = 10
TIES = 0.2  # share of tied events above which the order of events says little
DAY_S, HOUR_S, MINUTE_S = 86_400, 3_600, 60


def check_schema(table: pd.DataFrame, schema: pa.DataFrameSchema) -> Result:
    """Whether the table has the schema's columns, types and values. Details list the first faults."""
    try:
        schema.validate(table, lazy=True)
    except pandera.errors.SchemaErrors as error:
        faults = error.failure_cases
        shown = [
            f"{row.column}: {row.check}: {row.failure_case!r}" for row in faults.head(SHOWN).itertuples(index=False)
        ]
        return False, {"faults": len(faults), "first": shown}
    return True, {"rows": len(table)}


def check_unique_interactions(spec: DatasetSpec, interactions: pd.DataFrame) -> Result:
    """Whether (user, item) is unique, or (user, item, timestamp) if the data set keeps repeated interactions."""
    key = ["user_index", "item_index", *(["timestamp"] if spec.duplicates == "keep-all" else [])]
    repeated = interactions.duplicated(key)
    shown = interactions.loc[repeated, ["user_id", "item_id", "timestamp"]].head(SHOWN)
    return not repeated.any(), {
        "key": key,
        "repeated": int(repeated.sum()),
        "first": [[_plain(value) for value in row] for row in shown.itertuples(index=False)],
    }


def check_time_order(interactions: pd.DataFrame) -> Result:
    """Whether rows are grouped by user, and timestamps never fall within a user."""
    users = interactions["user_index"].to_numpy()
    times = interactions["timestamp"].to_numpy()
    wrong = (users[1:] < users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] < times[:-1]))
    rows = np.flatnonzero(wrong) + 1
    return not len(rows), {"out_of_order": len(rows), "first_rows": rows[:SHOWN].tolist()}


def check_ties(interactions: pd.DataFrame) -> Result:
    """Whether few events have the same time as another event of their user; details say how many, and perhaps why.

    Args:
        interactions: Columns user_index and timestamp (seconds), sorted by them.
    """
    users, times = interactions["user_index"].to_numpy(), interactions["timestamp"].to_numpy()
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied = np.zeros(len(times), dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    share = float(tied.mean()) if len(tied) else 0.0
    details: dict[str, Any] = {"tied_events": int(tied.sum()), "share": round(share, 4)}
    if share > TIES and (cause := _rounded_to(times)):
        details["cause"] = cause
    return share <= TIES, details


def _rounded_to(times: np.ndarray) -> str:
    """What all times are rounded to, if anything; empty if not."""
    step = int(np.gcd.reduce(times.astype(np.int64))) if (times % 1 == 0).all() else 1
    for seconds, name in ((DAY_S, "days"), (HOUR_S, "hours"), (MINUTE_S, "minutes")):
        if step and step % seconds == 0:
            return f"all times are whole {name}"
    tens = len(str(step)) - len(str(step).rstrip("0"))
    return (
        f"all times end in {tens} zeros: the file keeps too few digits, as in 1.601e+09" if step and tens >= 2 else ""
    )


def check_published_counts(spec: DatasetSpec, counts: Mapping[str, int]) -> Result:
    """Whether the counts of `Tables` equal the published ones. Details give found, published and difference of each.

    Once rows have arrived after publication, counts are expected to differ: the check shows the differences and passes.
    """
    details: dict[str, Any] = {}
    for expected, suffix in ((spec.expected_raw, "_read"), (spec.expected, "")):
        for name in ExpectedCounts.model_fields:
            published = getattr(expected, name)
            if published is not None:
                found = counts.get(name + suffix, 0)
                details[name + suffix] = {"found": found, "published": published, "difference": found - published}
    passed = all(detail["difference"] == 0 for detail in details.values())
    if details and counts.get("incoming_rows"):
        return True, {**details, "incoming_rows": counts["incoming_rows"]}
    return passed, details


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
