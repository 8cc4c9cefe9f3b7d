import gc

import fsspec
import pytest
import torch.distributed as dist
from lone_worker import lone_worker
from shaky_store import ShakyStore


@pytest.fixture(scope="session")
def _process_group():
    """Ends the process group that the first training in this process began."""
    yield
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


@pytest.fixture
def shaky():
    """The store behind `shaky://`, reachable and with nothing opened yet."""
    store = type("Shaky", (ShakyStore,), {})
    fsspec.register_implementation("shaky", store, clobber=True)
    return store


@pytest.fixture
def single_process(_process_group):
    """This process is a lone CPU worker."""
    with lone_worker():
        yield
