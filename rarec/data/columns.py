"""Typed columns out of published text: ids, numbers, times and plain text, block by block, bad values marked.

Each builder takes blocks of strings, says which rows it cannot read and why, and at the end gives one column.
"""

from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rarec.data.spec import DatasetSpec, SourceSpec

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
LATEST_SECOND = 2**33  # the year 2242; times in milliseconds lie above it
ID_COLUMNS = ("user_id", "item_id")


class Column(Protocol):
    """One column being read."""

    def parse(self, strings: pa.Array) -> np.ndarray:
        """Read a block (N,) of strings; returns the (N,) bool mask of rows it cannot read. Keeps the block."""

    def keep(self, rows: np.ndarray | None) -> None:
        """Keep only `rows` ((N,) bool mask; None = all) of the block just parsed."""

    def reason(self, text: str) -> str:
        """Why `text` cannot be read."""

    def finish(self) -> pd.Series:
        """The whole column."""


def _numbers(strings: pa.Array) -> np.ndarray:
    """(N,) float64 of the strings; NaN where a string is no finite decimal number."""
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
        """`also`: a value allowed outside [low, high]; `optional`: an empty string is NaN; `hint`: ends the reasons."""
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
    """Ids: int64 if every one is a whole number in canonical form (no sign, no leading zero), else strings."""

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
        # An id that is only white space, or a negative number, cannot be meant.
        return _mask(pc.match_substring_regex(strings, r"^(\s*|-[0-9]+)$"))

    def keep(self, rows: np.ndarray | None) -> None:
        """See `Column`."""
        if rows is not None:
            block = self._blocks.pop()
            kept = block.filter(pa.array(rows))
            # The bad rows may have been what made the block strings.
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
    """The builder of the column called `name`; `numeric`: the file declares an otherwise unknown column a number."""
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
