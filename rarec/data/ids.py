"""Looking up published ids in a clean table."""

from collections.abc import Iterable

import pandas as pd

from rarec.types import IntArray


class IdLookup:
    """Finds ids in a table. They are compared as text, so 17 and "17" are the same id."""

    def __init__(self, ids: pd.Series) -> None:
        self._index = pd.Index(ids.astype(str))

    def rows(self, wanted: Iterable[object]) -> IntArray:
        """(N,) row of each id; -1 for unknown ids."""
        return self._index.get_indexer(pd.Index([str(one) for one in wanted], dtype=self._index.dtype)).astype("int64")
