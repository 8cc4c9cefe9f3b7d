"""Clean tables of a few interactions."""

from collections.abc import Iterable

import numpy as np
import pandas as pd


def clean_table(rows: Iterable[tuple[str, str, int]] | pd.DataFrame) -> pd.DataFrame:
    """The clean table of (user, item, time)."""
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    table = table.sort_values(["user_id", "timestamp"], kind="stable", ignore_index=True)
    for name in ("user", "item"):
        table[f"{name}_index"] = pd.factorize(table[f"{name}_id"], sort=True)[0].astype(np.int32)
    return table
