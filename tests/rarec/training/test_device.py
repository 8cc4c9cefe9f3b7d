from unittest.mock import Mock

import torch

from rarec.training.device import on_device


def test_a_cpu_gets_the_tensor_itself():
    tensor = torch.arange(3)
    assert on_device(tensor, torch.device("cpu")) is tensor


def test_a_gpu_copies_from_memory_that_stays_in_place_and_nobody_waits():
    tensor, gpu = Mock(), torch.device("cuda", 0)
    copy = on_device(tensor, gpu)
    tensor.pin_memory.assert_called_once_with()
    tensor.pin_memory().to.assert_called_once_with(gpu, non_blocking=True)
    assert copy is tensor.pin_memory().to.return_value
