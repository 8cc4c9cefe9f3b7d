"""The three clean tables that both tracks start from: interactions, items, users.

Cleaning drops rows and counts them. It repairs no values: text that means "nothing" and implausible numbers become
missing. It is deterministic and, apart from ties in time, independent of the order of rows in the files.
"""

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rarec.data.raw import RawTables
from rarec.data.spec import DatasetSpec, Time
from rarec.errors import InputError

ITEM_TEXT = ("title", "genres", "category", "author", "publisher")
USER_TEXT = ("gender", "age_group", "occupation", "zip_code", "location")
PLAUSIBLE_AGES = (5, 100)
PLAUSIBLE_YEARS = (1450, 2029)  # from the first printed books; Book-Crossing has the years 0, 1376 and 2050
NO_GENRES = ("(no genres listed)", "unknown")
# A film's year after its title: "Heat (1995)", "Death Note (2006–2007)".
TITLE_YEAR = r"^(?P<title>.+?)\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)$"


@dataclass(frozen=True)
class Tables:
    """Clean tables; see `rarec.data.schemas` for their columns.

    Attributes:
        interactions: User_id, item_id, rating (float32, NaN if none), timestamp (int64), user_index, item_index
            (int32); sorted by (user, timestamp, order of appearance). `timestamp` is in seconds if the data have a
            clock, else the order within the user: as published, or drawn with `split_seed` and counted from 1.
        items: One row per item with interactions, sorted by item_id; item_index is the row number.
        users: One row per user with interactions, sorted by user_id; user_index is the row number.
        counts: Rows read, rows dropped by reason, and sizes before and after k-core.
        time: What `timestamp` means.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    counts: dict[str, int]
    time: Time


def build_tables(spec: DatasetSpec, raw: RawTables) -> Tables:
    """Make the clean, typed, sorted tables of a data set. `raw` is not changed.

    Raises:
        InputError: There are repeated interactions or unknown items that the data set does not allow, or nothing is
            left.
    """
    data = raw.interactions
    counts = _read_counts(raw)
    time: Time = "clock" if "timestamp" in data else "order" if "order" in data else "none"
    users, user_ids = pd.factorize(data["user_id"], sort=True)
    items, item_ids = pd.factorize(data["item_id"], sort=True)
    clock = np.zeros(len(data), dtype=np.int64)
    if time != "none":
        clock = data["timestamp" if time == "clock" else "order"].to_numpy(np.int64)

    # lexsort is stable: rows of the same user and time stay in order of appearance.
    rows = np.lexsort((clock, users))
    rows = _drop_implicit(spec, data, rows, counts)
    rows = _drop_unknown(spec, raw, rows, items, item_ids, counts)
    rows = _drop_repeated(spec, data, rows, users, items, clock, counts)
    counts |= _sizes(users[rows], items[rows], "_before_k_core")
    if spec.k_core:
        rows = rows[k_core(users[rows], items[rows], spec.k_core)]
    counts["dropped_k_core"] = counts["interactions_before_k_core"] - len(rows)
    if not len(rows):
        before = counts["interactions_before_k_core"]
        raise InputError(
            f"{spec.name}: the {spec.k_core}-core of its {before} interactions is empty; lower `k_core`."
            if before
            else f"{spec.name}: all interactions were dropped; check its `implicit_rating` and `unknown_items`."
        )
    counts |= _sizes(users[rows], items[rows], "")

    user_index, user_ids = _compact(users[rows], user_ids)
    item_index, item_ids = _compact(items[rows], item_ids)
    clock = clock[rows]
    if time == "none":
        order, clock = _draw_order(user_index, item_index, spec.split_seed)
        rows, user_index, item_index = rows[order], user_index[order], item_index[order]
    rating = data["rating"].to_numpy(np.float32)[rows] if "rating" in data else np.full(len(rows), np.nan, np.float32)
    interactions = pd.DataFrame(
        {
            "user_id": user_ids.take(user_index),
            "item_id": item_ids.take(item_index),
            "rating": rating,
            "timestamp": clock,
            "user_index": user_index,
            "item_index": item_index,
        }
    )
    user_table = _user_table(user_ids, raw.users)
    if raw.users is not None:
        counts["users_without_profile"] = int((~user_ids.isin(raw.users["user_id"])).sum())
    return Tables(interactions, _item_table(spec, item_ids, raw.items), user_table, counts, time)


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Ascending positions of the largest subset in which each user and each item has at least k interactions.

    Args:
        users: (N,) non-negative codes.
        items: (N,) non-negative codes.
        k: Least number of interactions.
    """
    rows = np.arange(len(users))
    while len(rows):
        enough = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
        if enough.all():
            break
        rows, users, items = rows[enough], users[enough], items[enough]
    return rows


def _read_counts(raw: RawTables) -> dict[str, int]:
    counts = {"interactions_read": len(raw.interactions)}
    if raw.incoming_rows:
        counts["incoming_rows"] = raw.incoming_rows
    for name, table in (("items", raw.items), ("users", raw.users)):
        if table is not None:
            counts[f"{name}_read"] = len(table)
    for source in raw.sources:
        counts[f"{source['role']}_quarantined"] = int((raw.quarantine["file"] == source["file"]).sum())
    return counts


def _sizes(users: np.ndarray, items: np.ndarray, suffix: str) -> dict[str, int]:
    return {
        f"users{suffix}": int(np.count_nonzero(np.bincount(users))),
        f"items{suffix}": int(np.count_nonzero(np.bincount(items))),
        f"interactions{suffix}": len(users),
    }


def _drop_implicit(spec: DatasetSpec, data: pd.DataFrame, rows: np.ndarray, counts: dict[str, int]) -> np.ndarray:
    if spec.implicit_rating is None or "rating" not in data:
        return rows
    explicit = data["rating"].to_numpy()[rows] != spec.implicit_rating
    counts["dropped_implicit"] = int((~explicit).sum())
    return rows[explicit]


def _drop_unknown(
    spec: DatasetSpec, raw: RawTables, rows: np.ndarray, items: np.ndarray, item_ids: pd.Index, counts: dict[str, int]
) -> np.ndarray:
    if raw.items is None:
        return rows
    known = pd.Index(item_ids).isin(raw.items["item_id"])[items[rows]]
    unknown = rows[~known]
    counts["dropped_unknown_items"] = len(unknown)
    if len(unknown) and spec.unknown_items == "error":
        first = raw.interactions[["user_id", "item_id"]].iloc[[unknown.min()]].to_dict("records")[0]
        files = {str(source["role"]): source["file"] for source in raw.sources}
        bad = counts.get("items_quarantined", 0)
        aside = f" ({bad} of its rows are unreadable and quarantined)" if bad else ""
        raise InputError(
            f"{files.get('interactions', spec.name)}: {len(unknown)} interactions have "
            f"{len(np.unique(items[unknown]))} items that {files.get('items', 'the item file')} lacks{aside}; first: "
            f"item_id {first['item_id']} of user_id {first['user_id']}. Complete the item file, or set "
            "unknown_items = 'drop' for the data set."
        )
    return rows[known]


def _drop_repeated(
    spec: DatasetSpec,
    data: pd.DataFrame,
    rows: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    clock: np.ndarray,
    counts: dict[str, int],
) -> np.ndarray:
    """Apply the rule for repeated interactions. `rows` are in time order, so the last of a pair is its latest."""
    pairs = pd.Series(users[rows].astype(np.int64) * (int(items.max(initial=0)) + 1) + items[rows])
    counts["dropped_duplicates"] = 0
    repeated = pairs.duplicated(keep="last").to_numpy()
    if not repeated.any():
        return rows
    if spec.duplicates == "error":
        first = data[["user_id", "item_id"]].iloc[[rows[repeated].min()]].to_dict("records")[0]
        raise InputError(
            f"{spec.name}: {int(repeated.sum())} interactions repeat a user and item; first: user_id "
            f"{first['user_id']} and item_id {first['item_id']}. Remove them, or set duplicates = 'keep-last' or "
            "'keep-all' for the data set."
        )
    if spec.duplicates == "keep-all":
        repeated = pd.DataFrame({"pair": pairs, "time": clock[rows]}).duplicated(keep="last").to_numpy()
    counts["dropped_duplicates"] = int(repeated.sum())
    return rows[~repeated]


def _compact(codes: np.ndarray, ids: pd.Index) -> tuple[np.ndarray, pd.Index]:
    """Codes (N,) int32 without gaps, in the same order, and the remaining ids."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    return (np.cumsum(used) - 1).astype(np.int32)[codes], pd.Index(ids)[used]


def _draw_order(users: np.ndarray, items: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random order within each user: (N,) positions sorted by user, and (N,) int64 places within the user, from 1."""
    # Starting from a canonical order, so that the draw does not depend on the order of rows in the file.
    start = np.lexsort((items, users))
    lottery = np.random.default_rng(seed).random(len(users))
    order = start[np.lexsort((lottery, users[start]))]
    lengths = np.bincount(users)
    ends = np.cumsum(lengths)
    return order, np.arange(1, len(users) + 1) - np.repeat(ends - lengths, lengths)


def _item_table(spec: DatasetSpec, ids: pd.Index, published: pd.DataFrame | None) -> pd.DataFrame:
    source = _aligned(ids, published, "item_id")
    text = {name: _text(source, name) for name in ITEM_TEXT}
    year = _whole_number(source, "year", PLAUSIBLE_YEARS)
    if spec.domain == "movies" and "year" not in source:
        parts = text["title"].str.extract(TITLE_YEAR)
        year = _whole_number(parts, "year", PLAUSIBLE_YEARS)
        text["title"] = parts["title"].where(year.notna(), text["title"])
    # An item without a title still needs a name; all there is is its id.
    text["title"] = text["title"].fillna("item " + pd.Series(ids).astype("str"))
    text["genres"] = text["genres"].mask(text["genres"].isin(NO_GENRES))
    return pd.DataFrame({"item_id": ids, "item_index": np.arange(len(ids), dtype=np.int32), **text, "year": year})


def _user_table(ids: pd.Index, published: pd.DataFrame | None) -> pd.DataFrame:
    source = _aligned(ids, published, "user_id")
    text = {name: _text(source, name) for name in USER_TEXT}
    age = _whole_number(source, "age", PLAUSIBLE_AGES)
    return pd.DataFrame({"user_id": ids, "user_index": np.arange(len(ids), dtype=np.int32), **text, "age": age})


def _aligned(ids: pd.Index, published: pd.DataFrame | None, key: str) -> pd.DataFrame:
    """Published rows in the order of `ids`, with missing values for ids that were not published."""
    if published is None:
        return pd.DataFrame(index=range(len(ids)))
    return published.set_index(key).reindex(ids).reset_index(drop=True)


def _text(source: pd.DataFrame, name: str) -> pd.Series:
    """Clean text: HTML entities are resolved, white space is collapsed, and empty text is missing."""
    if name not in source:
        return pd.Series([None] * len(source), dtype="str")
    text = source[name].astype("str")
    escaped = text.str.contains("&", regex=False, na=False)
    text = text.mask(escaped, text[escaped].map(html.unescape).reindex(text.index))
    text = text.str.replace(r"\s+", " ", regex=True).str.strip()
    return text.mask(text == "").astype("str")


def _whole_number(source: pd.DataFrame, name: str, bounds: tuple[int, int]) -> pd.Series:
    """Nullable integers; missing if the text is not a whole number within the bounds."""
    if name not in source:
        return pd.Series([pd.NA] * len(source), dtype="Int64")
    numbers = pd.to_numeric(source[name], errors="coerce").astype("float64")
    good = numbers.between(*bounds) & (numbers % 1 == 0)
    return numbers.where(good).astype("Int64")
