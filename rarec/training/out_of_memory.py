"""What a device that is out of memory raises, and what a user is told then."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rarec.errors import InputError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` tells that memory is short: on a CPU, PyTorch raises no `torch.OutOfMemoryError`."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def explain_out_of_memory(message: str) -> Iterator[None]:
    """Say ``message``, which names what to lower, where what is done within runs out of memory.

    Raises:
        InputError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise InputError(message) from error
        raise
