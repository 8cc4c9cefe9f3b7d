"""Dropout with random bits that cost next to nothing on a CPU."""

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class DropoutBits:
    """A seeded source of dropout masks, shared by the modules of one model.

    On a CPU, PyTorch draws dropout masks with a serial Mersenne Twister, which takes a third of the time of a small
    encoder's epoch. Eight random bits per element from SFC64 are 30 times cheaper. The drop probability is rounded to a
    multiple of 1/256, and the scale matches the rounded value, so the expectation is exact.
    """

    def __init__(self, seed: int = 0):
        self.seed(seed)

    def seed(self, *entropy: int) -> None:
        """Restart the stream from ``entropy`` (for example seed, epoch, rank)."""
        self._bits = np.random.SFC64(list(entropy))
        self._generators: dict[str, torch.Generator] = {}
        self._restored: dict[str, Tensor] = {}

    def state(self) -> dict[str, Tensor]:
        """Positions of the streams, as uint8 tensors."""
        own = json.dumps(self._bits.state, default=lambda array: array.tolist())
        states = {"bits": torch.frombuffer(bytearray(own.encode()), dtype=torch.uint8)}
        return states | self._restored | {kind: one.get_state() for kind, one in self._generators.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        own = json.loads(state["bits"].numpy().tobytes())
        own["state"]["state"] = np.array(own["state"]["state"], dtype=np.uint64)
        self._bits.state = own
        self._generators = {}
        # Keyed by kind of device: the same rank may get another GPU on another machine.
        self._restored = {kind: value for kind, value in state.items() if kind != "bits"}

    def scaled_mask(self, shape: torch.Size, p: float) -> Tensor:
        """A float32 CPU mask of ``shape``: 0 with probability ``p``, else ``1 / (1 - p)``."""
        dropped = min(round(p * 256), 255)
        count = shape.numel()
        words = self._bits.random_raw(-(-count // 8))
        keep = words.view(np.uint8)[:count] >= np.uint8(dropped)
        return torch.from_numpy(keep.view(np.uint8)).float().mul_(256 / (256 - dropped)).view(shape)

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator on ``device``, seeded from this stream: ranks differ, and a resumed run repeats."""
        kind = device.type
        if kind in self._restored:
            self._generators[kind] = torch.Generator(device)
            self._generators[kind].set_state(self._restored.pop(kind))
        elif kind not in self._generators:
            seed = int(self._bits.random_raw() >> 1)
            self._generators[kind] = torch.Generator(device).manual_seed(seed)
        return self._generators[kind]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's own generators on the CPU and on ``device``, as uint8 tensors."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Continue from what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


class Dropout(nn.Module):
    """Inverted dropout, with masks from `DropoutBits` on a CPU and from a generator that they seed elsewhere."""

    def __init__(self, p: float, bits: DropoutBits):
        super().__init__()
        self.p = p
        self.bits = bits

    def mask(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """The scaled mask to multiply with; None if nothing is dropped."""
        if not self.training or round(self.p * 256) == 0:
            return None
        if device.type == "cpu":
            return self.bits.scaled_mask(torch.Size(shape), self.p)
        kept = torch.empty(*shape, device=device).bernoulli_(1 - self.p, generator=self.bits.generator(device))
        return kept.div_(1 - self.p)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of ``x`` while training; the identity in evaluation."""
        mask = self.mask(x.shape, x.device)
        return x if mask is None else x * mask
