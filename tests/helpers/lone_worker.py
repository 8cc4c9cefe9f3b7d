"""This process as what the launcher starts for a training on one CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from rarec.training.progress import LONE_WORKER

SINGLE_PROCESS = {**LONE_WORKER, "DS_ACCELERATOR": "cpu"}
"""What the launcher sets for a lone CPU worker."""


@contextmanager
def lone_worker() -> Iterator[None]:
    """The environment of a lone CPU worker; one torch thread, so that results repeat bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in SINGLE_PROCESS.items():
                patch.setenv(name, value)
            yield
    finally:
        torch.set_num_threads(threads)
