"""Batches on their way to the device."""

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``.

    A GPU fetches it by itself, from memory that stays in place: the CPU goes on, and lays out the next batch while the
    GPU computes. (A plain copy waits until all that the GPU was asked before is done.)
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
