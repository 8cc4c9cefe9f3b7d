"""The clean tables of items and users: what is known of each, as text that may go into prompts.

Text that means "nothing" and implausible numbers become missing; nothing else is repaired.
"""

import html
import re

import numpy as np
import pandas as pd

from rarec.data.spec import DatasetSpec

ITEM_TEXT = ("title", "genres", "category", "author", "publisher")
USER_TEXT = ("gender", "age_group", "occupation", "zip_code", "location")
PLAUSIBLE_AGES = (5, 100)
PLAUSIBLE_YEARS = (1450, 2029)  # from the first printed books; Book-Crossing has the years 0, 1376 and 2050
NO_GENRES = ("(no genres listed)", "unknown")
# Texts that programs and people write where nothing is known. Case counts: a film may be called "Nil".
NO_TEXT = frozenset([
    "NULL", "null", "Null", "NaN", "nan", "NAN", "None", "NONE", "N/A", "n/a", "N/a", "NA", "<NA>", "#N/A", "NaT",
    "nil", "\\N", "undefined", "(null)", "-", "--", "Not Applicable (Na )", "not applicable",
])  # fmt: skip
BETWEEN_PARTS = {"location": ", ", "genres": "|"}  # texts of several parts, each of which may be nothing
# A film's year after its title: "Heat (1995)", "Death Note (2006–2007)".
TITLE_YEAR = r"^(?P<title>.+?)\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)$"
# White space, and control characters. Characters without width count as nothing at the ends of a text only: inside they
# join letters and emoji.
WHITE = re.compile(r"[\s\x00-\x1f\x7f\u200b\u2060\ufeff]+")
WIDTHLESS = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad"


def item_table(spec: DatasetSpec, ids: pd.Index, published: pd.DataFrame | None) -> pd.DataFrame:
    """The items `ids`, one row each. `published` has a row for each of them, in their order."""
    source = pd.DataFrame(index=range(len(ids))) if published is None else published
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


def user_table(ids: pd.Index, published: pd.DataFrame | None) -> pd.DataFrame:
    """The users `ids`, one row each. `published` has a row for each of them, in their order."""
    source = pd.DataFrame(index=range(len(ids))) if published is None else published
    text = {name: _text(source, name) for name in USER_TEXT}
    age = _whole_number(source, "age", PLAUSIBLE_AGES)
    return pd.DataFrame({"user_id": ids, "user_index": np.arange(len(ids), dtype=np.int32), **text, "age": age})


def _text(source: pd.DataFrame, name: str) -> pd.Series:
    """Clean text: HTML entities are resolved, white space is collapsed, and what means nothing is missing."""
    if name not in source:
        return pd.Series([None] * len(source), dtype="str")
    between = BETWEEN_PARTS.get(name)
    known = {text: clean_text(text, between) for text in source[name].dropna().unique()}
    return source[name].map(known).astype("str")


def clean_text(text: str, between: str | None = None) -> str | None:
    """The text as it goes into prompts; None if it says nothing.

    Args:
        text: As published.
        between: What separates its parts, each of which may say nothing.
    """
    text = WHITE.sub(" ", html.unescape(text) if "&" in text else text).strip(" " + WIDTHLESS)
    if between is not None:
        parts = [part.strip() for part in text.split(between.strip())]
        kept = [part for part in parts if part and part not in NO_TEXT]
        text = text if len(kept) == len(parts) else between.join(kept)
    return None if not text or text in NO_TEXT else text


def _whole_number(source: pd.DataFrame, name: str, bounds: tuple[int, int]) -> pd.Series:
    """Nullable integers; missing if the text is not a whole number within the bounds."""
    if name not in source:
        return pd.Series([pd.NA] * len(source), dtype="Int64")
    numbers = pd.to_numeric(source[name], errors="coerce").astype("float64")
    good = numbers.between(*bounds) & (numbers % 1 == 0)
    return numbers.where(good).astype("Int64")
