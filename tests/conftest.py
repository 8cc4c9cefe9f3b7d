import gc

import fsspec
import pytest
import torch
import torch.distributed as dist
from raserec_toys import SINGLE_PROCESS
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
def single_process(monkeypatch, _process_group):
    """What the launcher sets for a lone CPU worker; one torch thread, so that results repeat bit by bit."""
    for name, value in SINGLE_PROCESS.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
