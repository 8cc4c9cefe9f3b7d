"""Moving batches to the device."""

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``.

    The copy to a GPU is asynchronous, from pinned memory: the CPU prepares the next batch while the GPU computes. A
    plain copy would wait for all earlier work of the GPU.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
