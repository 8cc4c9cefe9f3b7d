"""Ids as published, looked up in a clean table."""

from collections.abc import Iterable

import pandas as pd

from rarec.types import IntArray


class IdLookup:
    """Rows of ids in a table, compared as text: a request may spell a number as a number or as text."""

    def __init__(self, ids: pd.Series) -> None:
        self._index = pd.Index(ids.astype(str))

    def rows(self, wanted: Iterable[object]) -> IntArray:
        """(N,) row of each id; -1 for an unknown one."""
        return self._index.get_indexer(pd.Index([str(one) for one in wanted], dtype=self._index.dtype)).astype("int64")
