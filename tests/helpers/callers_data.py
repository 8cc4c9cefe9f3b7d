"""Proof that a function changes none of its caller's data."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn


def copied(value: Any) -> Any:
    """A copy of all data inside ``value``."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.copy(deep=True)
    if isinstance(value, nn.Module):
        return {name: copied(tensor) for name, tensor in value.state_dict().items()}
    if dataclasses.is_dataclass(value):
        return {field.name: copied(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [copied(part) for part in value]
    return value


def same_data(one: Any, other: Any) -> bool:
    """Whether two copies hold the same data, bit by bit."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, pd.DataFrame):
        return one.dtypes.equals(other.dtypes) and one.index.equals(other.index) and one.equals(other)
    if isinstance(one, pd.Series):
        return one.dtype == other.dtype and one.index.equals(other.index) and one.equals(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_data(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_data, one, other))
    return one is other or one == other


@contextlib.contextmanager
def unchanged(*values: Any) -> Iterator[None]:
    """Fail if what happens inside changes any array, tensor, table or weight of ``values``.

    A function that writes into an array fails at that line: the arrays are read-only for as long as the block lasts.
    """
    before = copied(values)
    writeable = [array for array in _arrays(values) if array.flags.writeable and _root(array).flags.owndata]
    writeable.sort(key=_depth)
    for array in writeable:
        array.flags.writeable = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            yield
    finally:
        for array in writeable:  # what others are views of comes first
            array.flags.writeable = True
    assert same_data(before, copied(values)), "a caller's data was changed"


def _depth(array: np.ndarray) -> int:
    """How many arrays stand between a view and its data."""
    return 1 + _depth(array.base) if isinstance(array.base, np.ndarray) else 0


def _root(array: np.ndarray) -> np.ndarray:
    """The array that a view is of. PyTorch's memory belongs to none, and could not be made writeable again."""
    return _root(array.base) if isinstance(array.base, np.ndarray) else array


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)
