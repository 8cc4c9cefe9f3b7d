import pytest
from benchmark_worker import benchmark_worker


@pytest.fixture
def worker(_process_group):
    """This process is a worker of the benchmarks."""
    with benchmark_worker():
        yield
