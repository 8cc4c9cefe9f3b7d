"""Types that several rooms share: one name per concept."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""In order of time."""

Protocol = Literal["unmasked", "masked"]
"""Candidates of a ranking: all items, or all but those the user has seen (the target always stays)."""

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Distances = npt.NDArray[np.integer[Any]]
"""(N, K): how many positions each behaviour of a history is before its target; 0 if there is no behaviour."""
