import gc

import fsspec
import pytest
import torch.distributed as dist
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
