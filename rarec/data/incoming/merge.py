"""Adding incoming rows to the published ones. Nothing here writes anything."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rarec.data.incoming.rows import COLUMNS, NO_TIME, Incoming
from rarec.data.raw import RawTables
from rarec.data.spec import DatasetSpec

WHOLE_NUMBER = r"(?:0|[1-9][0-9]{0,17})"


@dataclass(frozen=True)
class Merged:
    """Published and incoming rows together.

    Attributes:
        raw: The tables: incoming rows after the published ones, bad rows in the quarantine.
        counts: Numbers of incoming rows that were added, were there already or were quarantined, and of published rows
            that a later rating of the same user and item replaced.
    """

    raw: RawTables
    counts: dict[str, int]


def merge_incoming(spec: DatasetSpec, raw: RawTables, incoming: Incoming) -> Merged:
    """Append incoming rows to the published tables. Neither argument is changed.

    A row that is already there (same user, item, timestamp and rating) is not added. If the data set allows only one
    interaction per user and item, the later one stays. No incoming row can make the data set unreadable: a row that
    does not fit (an id of another form, or an item that the item file lacks where that is an error) is quarantined.
    """
    published, rows = raw.interactions, incoming.rows
    has_clock, has_order = "timestamp" in published, "order" in published
    reasons = _reasons(spec, raw, rows)
    new = rows[reasons == ""]
    bad = rows[reasons != ""]
    aside = pd.DataFrame({"entry": bad["entry"], "line": bad["line"], "reason": reasons[reasons != ""]})
    aside["text"] = [",".join(map(str, row)) for row in bad[list(COLUMNS)].itertuples(index=False, name=None)]
    aside = aside.merge(incoming.files[["entry", "file"]], on="entry")
    for name in ("user_id", "item_id"):
        new = new.assign(**{name: new[name].astype(published[name].dtype)})

    near = published[published["user_id"].isin(new["user_id"])]
    named = ["user_id", "item_id", *(["rating"] if "rating" in published else [])]
    if has_clock:
        there = pd.concat([near, new])[[*named, "timestamp"]].duplicated().to_numpy()
    elif has_order:
        there = np.concatenate([np.zeros(len(near), bool), new[[*named, "timestamp"]].duplicated()])
    else:
        there = pd.concat([near, new])[named].duplicated().to_numpy()
    copies = int(there[len(near) :].sum())
    new = new[~there[len(near) :]]
    replaced = pd.Index([])
    if spec.duplicates == "error":
        replaced, kept = _later(near, new, has_clock)
        copies += int((~kept).sum())
        new = new[kept]
    if has_order:
        new = new.assign(order=_next_places(near, new))

    columns = [name for name in published.columns if name in new.columns]
    rest = published.drop(index=replaced)
    quarantine = pd.concat([incoming.bad, aside], ignore_index=True)
    quarantine = quarantine.assign(file="incoming/" + quarantine["file"].astype("str"))[raw.quarantine.columns]
    merged = replace(
        raw,
        interactions=pd.concat([rest, new[columns].astype(published.dtypes[columns])], ignore_index=True)
        if len(new)
        else published,
        quarantine=pd.concat([raw.quarantine, quarantine], ignore_index=True).astype(raw.quarantine.dtypes),
        incoming_rows=len(new),
    )
    counts = {
        "incoming_rows": len(new),
        "incoming_there_already": copies,
        "incoming_quarantined": len(quarantine),
        "published_rows_replaced": len(replaced),
    }
    return Merged(merged, counts)


def _reasons(spec: DatasetSpec, raw: RawTables, rows: pd.DataFrame) -> pd.Series:
    """Why each incoming row does not fit the published tables; empty if it fits."""
    published = raw.interactions
    reasons = pd.Series("", index=rows.index, dtype="str")

    def bad(where: pd.Series, reason: "pd.Series | str") -> None:
        nonlocal reasons
        reasons = reasons.mask(where & (reasons == ""), reason)

    for name in ("user_id", "item_id"):
        if published[name].dtype == np.int64:
            wrong = ~rows[name].str.fullmatch(WHOLE_NUMBER)
            bad(wrong, name + " '" + rows[name] + "' is not a whole number like the data set's other ids")
    if "rating" in published:
        bad(rows["rating"].isna(), "rating is missing")
    if "timestamp" in published:
        bad(rows["timestamp"] == NO_TIME, "timestamp is missing")
    if raw.items is not None and spec.unknown_items == "error":
        unknown = ~rows["item_id"].isin(raw.items["item_id"].astype("str"))
        bad(unknown, "item_id '" + rows["item_id"] + "' is not in the item file")
    return reasons


def _later(near: pd.DataFrame, new: pd.DataFrame, has_clock: bool) -> tuple[pd.Index, np.ndarray]:
    """Labels of the published rows that a later incoming one replaces, and (N,) which incoming rows stay."""
    both = pd.concat([near, new])
    times = both["timestamp"].to_numpy() if has_clock else np.zeros(len(both))
    order = np.argsort(times, kind="stable")
    earlier = np.empty(len(both), dtype=bool)
    earlier[order] = both.iloc[order].duplicated(["user_id", "item_id"], keep="last").to_numpy()
    pairs = pd.MultiIndex.from_frame(both[["user_id", "item_id"]])
    # Pairs that the published files repeat are not ours to mend.
    arrived = pairs.isin(pairs[len(near) :])
    return near.index[(earlier & arrived)[: len(near)]], ~earlier[len(near) :]


def _next_places(near: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """(N,) int64 places after each user's published ones, by time and then by arrival."""
    by_time = new.sort_values("timestamp", kind="stable")
    last = near.groupby("user_id")["order"].max()
    start = by_time["user_id"].map(last).fillna(0).astype("int64")
    return (start + by_time.groupby("user_id").cumcount() + 1).reindex(new.index)
