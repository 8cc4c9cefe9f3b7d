import gc

import pytest
import torch.distributed as dist


@pytest.fixture(scope="session")
def _process_group():
    """Ends the process group that the first training in this process began."""
    yield
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
