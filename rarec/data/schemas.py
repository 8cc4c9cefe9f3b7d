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


def _id(unique: bool = False) -> pa.Column:
    return pa.Column(checks=pa.Check(_is_id, name="id"), unique=unique)


def _text(nullable: bool = True) -> pa.Column:
    return pa.Column("str", checks=pa.Check(lambda text: text.str.strip() != "", name="not blank"), nullable=nullable)


INTERACTIONS = pa.DataFrameSchema(
    {
        "user_id": _id(),
        "item_id": _id(),
        "rating": pa.Column("float32", nullable=True),
        "timestamp": pa.Column(checks=[pa.Check(_is_time, name="time"), pa.Check.ge(0)]),
        "user_index": pa.Column("int32", pa.Check.ge(0)),
        "item_index": pa.Column("int32", pa.Check.ge(0)),
    },
    name="interactions",
    strict=True,
    ordered=True,
)
ITEMS = pa.DataFrameSchema(
    {
        "item_id": _id(unique=True),
        "item_index": pa.Column("int32", pa.Check(_counts_up, name="row number")),
        "title": _text(nullable=False),
        "genres": _text(),
        "category": _text(),
        "author": _text(),
        "publisher": _text(),
        "year": pa.Column("Int64", nullable=True),
    },
    name="items",
    strict=True,
    ordered=True,
)
USERS = pa.DataFrameSchema(
    {
        "user_id": _id(unique=True),
        "user_index": pa.Column("int32", pa.Check(_counts_up, name="row number")),
        "gender": _text(),
        "age_group": _text(),
        "occupation": _text(),
        "zip_code": _text(),
        "location": _text(),
        "age": pa.Column("Int64", nullable=True),
    },
    name="users",
    strict=True,
    ordered=True,
)
