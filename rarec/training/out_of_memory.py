"""Recognising and explaining out-of-memory errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rarec.errors import InputError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means out of memory. On a CPU, PyTorch does not raise `torch.OutOfMemoryError`."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def explain_out_of_memory(message: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into ``message``, which names the setting to lower.

    Raises:
        InputError: The block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise InputError(message) from error
        raise
