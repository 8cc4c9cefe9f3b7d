import pytest
import torch
from raserec_toys import SINGLE_PROCESS


@pytest.fixture
def single_process(monkeypatch, _process_group):
    """What the launcher sets for a lone CPU worker; one torch thread, so that results repeat bit by bit."""
    for name, value in SINGLE_PROCESS.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
