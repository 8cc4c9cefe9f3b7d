"""This process as a worker of the benchmarks."""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import pytest
import torch

from benchmarks.measure import WORKER_ENVIRONMENT, become_worker


@contextmanager
def benchmark_worker() -> Iterator[None]:
    """A lone worker of one thread, so that trainings repeat bit by bit."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in WORKER_ENVIRONMENT.items():
                patch.setenv(name, value)
            become_worker(1)
            yield
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])
