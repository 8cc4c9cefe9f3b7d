import psutil
import pytest
import torch
from torch import nn

from rarec.training.engine import (
    all_sum,
    gather_rows,
    initialise_engine,
    keep_freed_memory,
    peak_memory_mib,
    rank,
    return_freed_memory,
    worker_device,
    world_size,
)

CPU = torch.device("cpu")


def test_a_lone_process_is_rank_0_of_1_and_collectives_change_nothing():
    assert (rank(), world_size()) == (0, 1)
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    gathered, first = gather_rows(rows)
    assert gathered is rows
    assert first == 0
    assert float(all_sum(torch.tensor(2.5))) == 2.5


def test_the_launcher_may_forbid_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert worker_device() == CPU
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert worker_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert worker_device() == CPU


@pytest.mark.usefixtures("single_process")
def test_the_engine_is_plain_adam_however_large_the_gradient():
    """DeepSpeed neither clips, decays nor scales, and starts every step with empty gradients."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)))
        models[-1][2].bias.requires_grad_(False)
    engine = initialise_engine(models[0], 0.01, CPU)
    optimizer = torch.optim.Adam([p for p in models[1].parameters() if p.requires_grad], lr=0.01)
    fixed = models[0][2].bias.clone()
    norms = []
    for step, scale in enumerate((1e3, 1e-3, 50.0, 1.0)):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        loss = scale * engine(x).sum()
        engine.backward(loss)
        engine.step()
        optimizer.zero_grad()
        (scale * models[1](x).sum()).backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in models[1].parameters() if p.grad is not None])))
        optimizer.step()
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert max(norms) > 100  # clipping would show
    assert min(norms) < 0.1
    assert torch.equal(models[0][2].bias, fixed)


def test_memory_is_kept_and_measured():
    keep_freed_memory()
    before = peak_memory_mib()
    # Beyond the highest peak so far, which earlier tests may have set far above the present size.
    mib = int(before - psutil.Process().memory_info().rss / 2**20) + 40
    block = torch.ones(mib << 18)
    assert before + 20 < peak_memory_mib() < before + 400
    del block
    return_freed_memory()
    assert psutil.Process().memory_info().rss / 2**20 < peak_memory_mib()
