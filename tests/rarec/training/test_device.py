"""Batches arrive as they were, whatever became of the source meanwhile; only a GPU's way leads over pinned memory."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from rarec.training.device import on_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TENSORS = {
    "ids": torch.arange(12).view(3, 4),
    "vectors": torch.linspace(-1, 1, 10).view(5, 2),
    "half": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
    "transposed": torch.arange(6).view(2, 3).T,
    "every other": torch.arange(9)[::2],
    "empty": torch.empty(0, 7),
    "scalar": torch.tensor(3),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class PretendedGPU(TorchFunctionMode):
    """What asks for a GPU gets a copy on the CPU; keeps what was asked for, in order."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "pin_memory" or (name == "to" and GPU in args):
            self.asked.append((name, kwargs or {}))
            return args[0].clone()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TENSORS)
def test_a_cpu_gets_the_tensor_itself(name):
    with PretendedGPU() as pretended:
        assert on_device(TENSORS[name], CPU) is TENSORS[name]
    assert pretended.asked == []


@pytest.mark.parametrize("name", TENSORS)
def test_a_gpu_gets_a_copy_from_pinned_memory_and_nobody_waits(name):
    tensor, before = TENSORS[name], TENSORS[name].clone()
    with PretendedGPU() as pretended:
        copy = on_device(tensor, GPU)
    assert pretended.asked == [("pin_memory", {}), ("to", {"non_blocking": True})]
    assert copy is not tensor
    assert (copy.dtype, copy.shape) == (before.dtype, before.shape)
    assert torch.equal(copy, before)
    assert torch.equal(tensor, before)


@needs_gpu
@pytest.mark.parametrize("name", TENSORS)
def test_what_arrives_on_a_real_gpu_is_equal(name):
    copy = on_device(TENSORS[name], GPU)
    assert copy.device == GPU
    assert copy.dtype == TENSORS[name].dtype
    assert torch.equal(copy.cpu(), TENSORS[name])


@needs_gpu
def test_a_batch_on_its_way_survives_its_source_and_the_batches_behind_it():
    """While the GPU is kept busy, nothing has arrived yet; each source is overwritten and given up meanwhile."""
    size, count = 1 << 18, 20
    # Both allocators keep what they got: a fresh allocation may wait for the GPU.
    kept = [on_device(torch.zeros(size, dtype=torch.int64), GPU) for _ in range(count)]
    pinned = [torch.zeros(size, dtype=torch.int64).pin_memory() for _ in range(count)]
    del kept, pinned
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    arrived, copies = torch.cuda.Event(), []
    for number in range(count):
        source = torch.full((size,), number)
        copies.append(on_device(source, GPU))
        source.fill_(-1)
        del source
    arrived.record()
    assert not arrived.query()  # nobody waited
    for number, copy in enumerate(copies):
        assert torch.equal(copy.cpu(), torch.full((size,), number))
