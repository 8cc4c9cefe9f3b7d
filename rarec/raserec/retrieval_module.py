"""The retrieval-augmented module of RaSeRec (section 3.4): attention over the memories of similar users.

Shapes: B queries, K memories each, D width, H heads. Memories are pairs (representation, embedding of the next item),
both (B, K, D), with a mask (B, K) of those that exist. A query without memories keeps its own representation.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rarec.errors import InputError
from rarec.raserec.settings import FinetuneSettings
from rarec.training.dropout import Dropout, DropoutBits

INITIAL_STD = 0.02
NORM_EPS = 1e-12


class CrossAttention(nn.Module):
    """Multi-head attention of a query over K memories, without projecting the memories.

    For each head, q·(W m) = m·(Wᵀ q) and Σ a (W v) = W Σ a v. So two small products per query replace two projections
    of all its K memories. There is no key bias: it would shift all scores of a query alike and change nothing. The
    value bias is weighted by Σ a, which dropout moves away from 1.
    """

    def __init__(self, dim: int, heads: int, dropout: float, bits: DropoutBits):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout, bits)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Attend; returns (B, D).

        Args:
            query: (B, D).
            keys, values: (B, K, D).
            present: (B, K) bool, which memories exist.
        """
        dim = query.shape[1]
        width = dim // self.heads
        q = self.query(query).view(-1, self.heads, width) * width**-0.5  # (B, H, D/H)
        q = torch.einsum("bhw,hwd->bhd", q, self.key.weight.view(self.heads, width, dim))  # (B, H, D)
        scores = (q @ keys.transpose(1, 2)).masked_fill(~present[:, None], torch.finfo(q.dtype).min)  # (B, H, K)
        weights = self.dropout(scores.softmax(-1) * present[:, None])  # (B, H, K)
        mixed = weights @ values  # (B, H, D)
        value = torch.einsum("bhd,hwd->bhw", mixed, self.value.weight.view(self.heads, width, dim))  # (B, H, D/H)
        value = value + weights.sum(-1, keepdim=True) * self.value.bias.view(self.heads, width)
        return self.out(value.reshape(-1, dim))


class Channel(nn.Module):
    """Cross-attention, feed-forward with residual and layer norm, cross-attention (RaSeRec, eq. 9 to 11)."""

    def __init__(self, dim: int, settings: FinetuneSettings, bits: DropoutBits):
        super().__init__()
        self.first = CrossAttention(dim, settings.heads, settings.dropout, bits)
        self.up = nn.Linear(dim, settings.inner_dim)
        self.down = nn.Linear(settings.inner_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = Dropout(settings.dropout, bits)
        self.second = CrossAttention(dim, settings.heads, settings.dropout, bits)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Shapes as in `CrossAttention`."""
        x = self.first(query, keys, values, present)
        x = self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return self.second(x, keys, values, present)


class RetrievalAugmentedModule(nn.Module):
    """Both channels, and their mixture with the query (RaSeRec, eq. 8 and 12).

    Channel 1 attends to similar users: keys are their representations, values their next items. Channel 2 attends to
    memories with suitable next items: keys are the items, values the representations. A channel without weight
    (beta = 1 or 0) is not built. As a control (``attend_to = "itself"``) the query stands in the place of every key and
    value.
    """

    def __init__(self, dim: int, settings: FinetuneSettings, bits: DropoutBits):
        super().__init__()
        if dim % settings.heads:
            raise InputError(f"heads = {settings.heads} does not divide the encoder's dim = {dim}; change heads")
        self.settings = settings
        self.bits = bits
        self.channel1 = Channel(dim, settings, bits) if settings.beta > 0 else None
        self.channel2 = Channel(dim, settings, bits) if settings.beta < 1 else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        query: Tensor,
        representations: Tensor,
        next_items: Tensor,
        users: Tensor | None,
        items: Tensor | None,
    ) -> Tensor:
        """Augmented representations (B, D).

        Args:
            query: (B, D) the encoder's representations.
            representations: (N, D) of all memories.
            next_items: (N, D) embeddings of the memories' next items.
            users: (B, K) memory ids for channel 1, -1 if there are fewer; None without channel 1.
            items: (B, K) memory ids for channel 2, likewise.
        """
        alpha, beta = self.settings.alpha, self.settings.beta
        retrieved = torch.zeros_like(query)
        any_memory = torch.zeros(len(query), 1, dtype=torch.bool, device=query.device)
        for channel, ids, share in ((self.channel1, users, beta), (self.channel2, items, 1 - beta)):
            if channel is None or ids is None:
                continue
            present = ids >= 0  # (B, K)
            ids = ids.clamp_min(0)
            if self.settings.attend_to == "itself":
                sides = (query[:, None].expand(-1, ids.shape[1], -1),) * 2
            else:
                sides = (representations[ids], next_items[ids])  # (B, K, D) each
            keys, values = sides if channel is self.channel1 else sides[::-1]
            retrieved = retrieved + share * channel(query, keys, values, present)
            any_memory = any_memory | present.any(1, keepdim=True)
        return torch.where(any_memory, alpha * query + (1 - alpha) * retrieved, query)


MODULE_FILES = ("module.json", "module.safetensors")


def save_module(module: RetrievalAugmentedModule, dim: int, encoder: str, folder: Path) -> None:
    """Write weights as safetensors, and settings, width and the encoder's fingerprint as JSON."""
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(weights, folder / "module.safetensors")
    record = {"dim": dim, "encoder": encoder, "settings": module.settings.model_dump()}
    (folder / "module.json").write_text(json.dumps(record, indent=1))


def load_module(folder: Path, encoder: str) -> RetrievalAugmentedModule:
    """Read what `save_module` wrote, for the encoder with this fingerprint.

    Raises:
        InputError: The module was tuned on another encoder.
    """
    record = json.loads((folder / "module.json").read_text())
    if record["encoder"] != encoder:
        raise InputError(
            f"the retrieval-augmented module was tuned on encoder {record['encoder']} and cannot serve encoder "
            f"{encoder}; materialise `raserec_finetuned` again"
        )
    module = RetrievalAugmentedModule(record["dim"], FinetuneSettings(**record["settings"]), DropoutBits())
    module.load_state_dict(load_file(folder / "module.safetensors"))
    return module.eval()
