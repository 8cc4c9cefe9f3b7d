"""Columns, types and value rules of the three clean tables."""

import numpy as np
import pandas as pd
import pandera.pandas as pa


def _is_id(column: pd.Series) -> bool:
    """Either all whole numbers, or all strings that are not blank."""
    if column.dtype == np.int64:
        return True
    return isinstance(column.dtype, pd.StringDtype) and bool((column.str.strip() != "").all())


def _is_time(column: pd.Series) -> bool:
    """Whole seconds or places, or seconds with fractions."""
    return column.dtype in (np.int64, np.float64)


def _counts_up(column: pd.Series) -> bool:
    """Row numbers: 0, 1, 2, …"""
    return bool((column.to_numpy() == np.arange(len(column))).all())


def _id(description: str, unique: bool = False) -> pa.Column:
    return pa.Column(checks=pa.Check(_is_id, name="id"), unique=unique, description=description)


def _text(description: str, nullable: bool = True) -> pa.Column:
    not_blank = pa.Check(lambda text: text.str.strip() != "", name="not blank")
    return pa.Column("str", checks=not_blank, nullable=nullable, description=description)


USER_ID, ITEM_ID = "User, as published.", "Item, as published."
USER_INDEX = "Number of the user, from 0: the row in `user_profiles`."
ITEM_INDEX = "Number of the item, from 0: the row in `item_catalog`."
TIME = "Seconds since 1970 in UTC; or, of data without a clock, the place in the user's order."
RATING = "Rating as published; missing if there is none."


INTERACTIONS = pa.DataFrameSchema(
    {
        "user_id": _id(USER_ID),
        "item_id": _id(ITEM_ID),
        "rating": pa.Column("float32", nullable=True, description=RATING),
        "timestamp": pa.Column(checks=[pa.Check(_is_time, name="time"), pa.Check.ge(0)], description=TIME),
        "user_index": pa.Column("int32", pa.Check.ge(0), description=USER_INDEX),
        "item_index": pa.Column("int32", pa.Check.ge(0), description=ITEM_INDEX),
    },
    name="interactions",
    strict=True,
    ordered=True,
)
ITEMS = pa.DataFrameSchema(
    {
        "item_id": _id(ITEM_ID, unique=True),
        "item_index": pa.Column("int32", pa.Check(_counts_up, name="row number"), description=ITEM_INDEX),
        "title": _text("Title.", nullable=False),
        "genres": _text("Genres, separated by bars."),
        "category": _text("Category."),
        "author": _text("Author."),
        "publisher": _text("Publisher."),
        "year": pa.Column("Int64", nullable=True, description="Year of publication."),
    },
    name="items",
    strict=True,
    ordered=True,
)
USERS = pa.DataFrameSchema(
    {
        "user_id": _id(USER_ID, unique=True),
        "user_index": pa.Column("int32", pa.Check(_counts_up, name="row number"), description=USER_INDEX),
        "gender": _text("Gender."),
        "age_group": _text("Age group, in words."),
        "occupation": _text("Occupation."),
        "zip_code": _text("Postal code."),
        "location": _text("Town, region, country."),
        "age": pa.Column("Int64", nullable=True, description="Age in years."),
    },
    name="users",
    strict=True,
    ordered=True,
)
