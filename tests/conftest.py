import gc
import time

import fsspec
import pytest
import torch.distributed as dist
from lone_worker import lone_worker
from shaky_store import ShakyStore

FAILED_STEP = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep the first step that failed of a file whose tests are ``ordered``."""
    report = yield
    if report.failed and item.get_closest_marker("ordered"):
        item.parent.stash.setdefault(FAILED_STEP, item.name)
    return report


def pytest_runtest_setup(item):
    """Skip the steps behind it."""
    if failed := item.parent.stash.get(FAILED_STEP, None):
        pytest.skip(f"an earlier step failed: {failed}")


@pytest.fixture(scope="session")
def _process_group():
    """Ends the process group that the first training in this process began."""
    yield
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


@pytest.fixture
def clock(monkeypatch):
    """The steady clock of this process; it stands still until a test sets `now`."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


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
