import subprocess
import sys

import pytest
import torch
from torch import nn

from rarec.training.engine import (
    adam,
    all_sum,
    gather_rows,
    initialise_engine,
    rank,
    worker_device,
    world_size,
)
from rarec.training.engine_settings import EngineSettings

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
    engine = initialise_engine(models[0], lambda parameters: adam(parameters, 0.01), EngineSettings(), CPU)
    assert not engine.tput_timer.config.enabled  # on a GPU it would wait for it twice a step
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


MEMORY = """
import psutil, torch
from rarec.training.engine import keep_freed_memory, peak_memory_mib, return_freed_memory
resident = lambda: psutil.Process().memory_info().rss / 2**20
keep_freed_memory()
before, peak_before = resident(), peak_memory_mib()
blocks = [torch.ones(16 << 18) for _ in range(10)]
full, peak = resident(), peak_memory_mib()
del blocks
kept = resident()
return_freed_memory()
print(before, peak_before, full, peak, kept, resident(), peak_memory_mib())
"""


def test_memory_is_kept_returned_and_measured():
    """In a process of its own, whose heap holds nothing from other tests: ten blocks of 16 MiB come and go."""
    process = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, peak_before, full, peak, kept, after, peak_after = map(float, process.stdout.split())
    assert full - before == pytest.approx(160, abs=15)
    assert peak_before + 140 < peak < peak_before + 240
    assert peak >= full
    assert kept > full - 15  # freed, and still there for the next step
    assert after < full - 140
    assert peak_after == pytest.approx(peak, abs=5)
