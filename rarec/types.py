"""Types that several rooms share: one name for one concept."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""In the order of time."""

Protocol = Literal["unmasked", "masked"]
"""Candidates of a ranking: all items, or all but those the user has seen (the target always stays)."""

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Distances = npt.NDArray[np.integer[Any]]
"""(N, K): how many positions before its target each behaviour of a history stands; 0 where there is none."""
