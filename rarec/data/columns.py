"""Parsing published text into typed columns (ids, numbers, times, plain text), block by block.

A builder takes blocks of strings, marks the rows that it cannot read, says why, and finally returns one column.
"""

from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rarec.data.spec import DatasetSpec, SourceSpec

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
LATEST_SECOND = 2**33  # in the year 2242; times in milliseconds are larger
ID_COLUMNS = ("user_id", "item_id")


class Column(Protocol):
    """A column that is being read."""

    def parse(self, strings: pa.Array) -> np.ndarray:
        """Read a block (N,) of strings; return a mask (N,) of the rows that cannot be read. The block is kept."""

    def keep(self, rows: np.ndarray | None) -> None:
        """Of the block just parsed, keep only `rows`, a mask (N,); None keeps all."""

    def reason(self, text: str) -> str:
        """Why `text` cannot be read."""

    def finish(self) -> pd.Series:
        """The whole column."""


def _numbers(strings: pa.Array) -> np.ndarray:
    """(N,) float64 values of the strings; NaN where a string is not a finite decimal number."""
    try:
        values = pc.cast(strings, pa.float64())
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim_whitespace(strings)
        values = pc.cast(pc.if_else(pc.match_substring_regex(trimmed, NUMBER), trimmed, None), pa.float64())
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _mask(flags: pa.Array) -> np.ndarray:
    return np.asarray(flags.to_numpy(zero_copy_only=False), dtype=bool)


class NumberColumn:
    """Finite numbers within bounds."""

    def __init__(
        self,
        name: str,
        dtype: type,
        low: float = -np.inf,
        high: float = np.inf,
        also: float | None = None,
        optional: bool = False,
        hint: str = "",
    ) -> None:
        """Set the bounds.

        Args:
            also: A value that is allowed outside [low, high].
            optional: Whether an empty string means NaN.
            hint: Ends every reason.
        """
        self.name, self.dtype, self.low, self.high, self.also, self.optional = name, dtype, low, high, also, optional
        self.hint = hint
        self._blocks: list[np.ndarray] = []

    def parse(self, strings: pa.Array) -> np.ndarray:
        """See `Column`."""
        values = _numbers(strings)
        bad = ~((values >= self.low) & (values <= self.high))
        if self.also is not None:
            bad &= values != self.also
        if self.optional:
            bad &= ~_mask(pc.equal(strings, ""))
        self._blocks.append(values)
        return bad

    def keep(self, rows: np.ndarray | None) -> None:
        """See `Column`."""
        block = self._blocks[-1] if rows is None else self._blocks[-1][rows]
        self._blocks[-1] = block.astype(self.dtype)

    def reason(self, text: str) -> str:
        """See `Column`."""
        if np.isnan(_numbers(pa.array([text]))[0]):
            return f"{self.name} {text!r} is not a number{self.hint}"
        return f"{self.name} {text!r} is outside {self.low:g} to {self.high:g}{self.hint}"

    def finish(self) -> pd.Series:
        """See `Column`."""
        return pd.Series(np.concatenate(self._blocks) if self._blocks else np.empty(0, self.dtype), name=self.name)


class IdColumn:
    """Ids: int64 if all are whole numbers in canonical form (no sign, no leading zeros), else strings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._blocks: list[pa.Array] = []

    def parse(self, strings: pa.Array) -> np.ndarray:
        """See `Column`."""
        try:
            integers = pc.cast(strings, pa.int64())
            canonical = pc.all(pc.equal(pc.cast(integers, pa.string()), strings), min_count=0).as_py()
        except pa.ArrowInvalid:
            canonical = False
        if canonical:
            self._blocks.append(integers)
            return _mask(pc.less(integers, 0))
        self._blocks.append(strings)
        # Nobody means blanks or a negative number as an id.
        return _mask(pc.match_substring_regex(strings, r"^(\s*|-[0-9]+)$"))

    def keep(self, rows: np.ndarray | None) -> None:
        """See `Column`."""
        if rows is not None:
            block = self._blocks.pop()
            kept = block.filter(pa.array(rows))
            # Perhaps only the bad rows made the block one of strings.
            if pa.types.is_string(kept.type):
                self.parse(kept)
            else:
                self._blocks.append(kept)

    def reason(self, text: str) -> str:
        """See `Column`."""
        return f"{self.name} is empty" if not text.strip() else f"{self.name} {text!r} is negative"

    def finish(self) -> pd.Series:
        """See `Column`."""
        if any(pa.types.is_string(block.type) for block in self._blocks):
            blocks = [pc.cast(block, pa.string()) for block in self._blocks]
            return pa.chunked_array(blocks, pa.string()).to_pandas().astype("str").rename(self.name)
        arrays = [block.to_numpy(zero_copy_only=False) for block in self._blocks]
        return pd.Series(np.concatenate(arrays) if arrays else np.empty(0, np.int64), name=self.name)


class TextColumn:
    """Text as published."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._blocks: list[pa.Array] = []

    def parse(self, strings: pa.Array) -> np.ndarray:
        """See `Column`."""
        self._blocks.append(strings)
        return np.zeros(len(strings), dtype=bool)

    def keep(self, rows: np.ndarray | None) -> None:
        """See `Column`."""
        if rows is not None:
            self._blocks[-1] = self._blocks[-1].filter(pa.array(rows))

    def reason(self, text: str) -> str:
        """Never called: every text can be read."""
        raise AssertionError(text)

    def finish(self) -> pd.Series:
        """See `Column`."""
        return pa.chunked_array(self._blocks, pa.string()).to_pandas().astype("str").rename(self.name)


def make_column(name: str, spec: DatasetSpec, numeric: bool = False) -> Column:
    """The builder for the column called `name`.

    Args:
        numeric: Whether the file declares a column unknown to us as a number.
    """
    if name in ID_COLUMNS:
        return IdColumn(name)
    if name == "rating":
        low, high = spec.rating_scale or (-np.inf, np.inf)
        return NumberColumn(name, np.float32, low, high, also=spec.implicit_rating)
    if name == "timestamp":
        return NumberColumn(name, np.int64, 0, LATEST_SECOND, hint=" (seconds since 1970 are expected)")
    if name == "order":
        return NumberColumn(name, np.int64, 0, 2**53)
    return NumberColumn(name, np.float64, optional=True) if numeric else TextColumn(name)


def time_column(spec: DatasetSpec, source: SourceSpec) -> str | None:
    """Name of the raw time column: `timestamp` (clock), `order`, or None."""
    return {"clock": "timestamp", "order": "order", "none": None}[source.time or spec.time]
