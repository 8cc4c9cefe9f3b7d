"""Types that mean the same everywhere."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test"]
IntArray = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
