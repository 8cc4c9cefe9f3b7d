"""Sequence encoders: windows of item sequences in, one user representation per prefix out.

An encoder is an ``nn.Module`` that maps a batch made by its own `pack` to (M, D), and carries its item embeddings. If
``shares_prefixes`` is set, one pass over a window yields all its prefixes (causal encoders), otherwise only the last
one. Shape letters are those of `packing`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rarec.data.sequences import UserSequences, Windows, ranges, shared_windows, single_windows
from rarec.errors import InputError
from rarec.raserec.packing import PackedRows, PackedSteps, pack_rows, pack_steps
from rarec.raserec.settings import EncoderSettings
from rarec.training.dropout import Dropout, DropoutBits
from rarec.training.progress import ReportProgress, quiet
from rarec.types import IntArray

INITIAL_STD = 0.02  # SASRec's and BERT's customary initial scale
NORM_EPS = 1e-12


class SequenceEncoder(nn.Module):
    """Base of all encoders: item embeddings (I, D), and how prefixes become representations."""

    shares_prefixes = True

    def __init__(self, n_items: int, settings: EncoderSettings, bits: DropoutBits):
        super().__init__()
        self.settings = settings
        self.bits = bits
        self.n_items = n_items
        self.item_embedding = nn.Parameter(torch.empty(n_items, settings.dim).normal_(std=INITIAL_STD))

    def windows(self, sequences: UserSequences, prefixes: IntArray) -> Windows:
        """The cheapest windows from which this encoder yields ``prefixes`` (ascending positions)."""
        plan = shared_windows if self.shares_prefixes else single_windows
        return plan(sequences, prefixes, self.settings.max_length, self.settings.context_stride)

    def pack(self, sequences: UserSequences, windows: Windows) -> Any:
        """Arrange windows as a batch for this encoder."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(
        self, sequences: UserSequences, prefixes: IntArray, batch_tokens: int = 16384, report: ReportProgress = quiet
    ) -> Tensor:
        """(P, D) representations of ``prefixes`` (ascending positions), without dropout.

        ``report`` is told before each batch how many are done.
        """
        device = self.item_embedding.device
        windows = self.windows(sequences, prefixes)
        result = self.item_embedding.new_empty(len(prefixes), self.settings.dim)
        first_output = windows.outputs.cumsum() - windows.outputs
        batch_of = windows.length.cumsum() // batch_tokens
        was_training = self.training
        self.eval()
        for part in np.split(np.arange(len(windows)), np.flatnonzero(np.diff(batch_of)) + 1):
            report(step=int(first_output[part[:1]].sum()), steps=len(prefixes), unit="prefix")
            chosen = windows.take(part)
            rows = torch.from_numpy(ranges(first_output[part], chosen.outputs))
            result[rows.to(device)] = self(self.pack(sequences, chosen).to(device))
        self.train(was_training)
        return result


class _Attention(nn.Module):
    """Multi-head self-attention within the windows of packed rows."""

    def __init__(self, settings: EncoderSettings, bits: DropoutBits):
        super().__init__()
        self.heads = settings.heads
        self.qkv = nn.Linear(settings.dim, 3 * settings.dim)
        self.out = nn.Linear(settings.dim, settings.dim)
        self.dropout = Dropout(settings.attention_dropout, bits)

    def forward(self, x: Tensor, hidden: Tensor, wanted: Tensor | None) -> Tensor:
        """Attend.

        Args:
            x: (R, l, D).
            hidden: (R·H, l, l), -inf where a token may not look, else 0.
            wanted: (M,) the tokens to return, or None for all.

        Returns:
            (M, D), or (T, D) for all tokens.
        """
        rows, length, dim = x.shape
        width = dim // self.heads
        qkv = self.qkv(x).view(rows, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)  # (3, R, H, l, D/H)
        q, k, v = qkv.reshape(3, rows * self.heads, length, width)  # (R·H, l, D/H) each
        weights = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=width**-0.5).softmax(-1)  # (R·H, l, l)
        mixed = torch.bmm(self.dropout(weights), v).view(rows, self.heads, length, width)
        mixed = mixed.transpose(1, 2).reshape(rows * length, dim)  # (T, D)
        return self.out(mixed if wanted is None else mixed.index_select(0, wanted))


class _TransformerLayer(nn.Module):
    """Post-norm transformer layer. The final one returns only the wanted tokens."""

    def __init__(self, settings: EncoderSettings, bits: DropoutBits):
        super().__init__()
        self.attention = _Attention(settings, bits)
        self.attention_norm = nn.LayerNorm(settings.dim, eps=NORM_EPS)
        self.up = nn.Linear(settings.dim, settings.inner_dim)
        self.down = nn.Linear(settings.inner_dim, settings.dim)
        self.norm = nn.LayerNorm(settings.dim, eps=NORM_EPS)
        self.dropout = Dropout(settings.hidden_dropout, bits)

    def forward(self, x: Tensor, hidden: Tensor, wanted: Tensor | None) -> Tensor:
        """Map (R, l, D) to (T, D), or to (M, D) if tokens are ``wanted``."""
        own = x.flatten(0, 1)  # (T, D)
        own = own if wanted is None else own.index_select(0, wanted)
        own = self.attention_norm(own + self.dropout(self.attention(x, hidden, wanted)))
        return self.norm(own + self.dropout(self.down(F.gelu(self.up(own)))))


class _Transformer(SequenceEncoder):
    """Item and position embeddings, layer norm, dropout, transformer layers."""

    def __init__(self, n_items: int, settings: EncoderSettings, bits: DropoutBits, positions: int):
        super().__init__(n_items, settings, bits)
        self.position_embedding = nn.Parameter(torch.empty(positions, settings.dim).normal_(std=INITIAL_STD))
        self.norm = nn.LayerNorm(settings.dim, eps=NORM_EPS)
        self.dropout = Dropout(settings.hidden_dropout, bits)
        self.layers = nn.ModuleList(_TransformerLayer(settings, bits) for _ in range(settings.layers))
        self.apply(_initialise)

    def _run(self, batch: PackedRows, embeddings: Tensor) -> Tensor:
        x = F.embedding(batch.items, embeddings) + F.embedding(batch.positions, self.position_embedding)  # (R, l, D)
        x = self.dropout(self.norm(x))
        place = torch.arange(x.shape[1], device=x.device)
        unseen = (place < batch.first[:, :, None]) | (place > batch.last[:, :, None])  # (R, l, l)
        hidden = x.new_zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
        hidden = hidden.repeat_interleave(self.settings.heads, 0)  # (R·H, l, l)
        for layer in self.layers[:-1]:
            x = layer(x, hidden, None).view_as(x)
        return self.layers[-1](x, hidden, batch.outputs)


class SASRec(_Transformer):
    """Causal transformer encoder (RaSeRec, section 3.2.1; after Kang and McAuley 2018)."""

    def __init__(self, n_items: int, settings: EncoderSettings, bits: DropoutBits):
        super().__init__(n_items, settings, bits, positions=settings.max_length)

    def pack(self, sequences: UserSequences, windows: Windows) -> PackedRows:
        """Windows in rows. A token sees its window up to itself."""
        return pack_rows(sequences, windows)

    def forward(self, batch: PackedRows) -> Tensor:
        """(M, D) representations of the wanted prefixes."""
        return self._run(batch, self.item_embedding)


class BERT4Rec(_Transformer):
    """Bidirectional transformer. A mask token after a prefix gives its representation (after Sun et al. 2019).

    This is BERT4Rec's backbone with RaSeRec's training: it learns to predict only the next item, not masked items
    within the sequence. Each prefix is read on its own, since later items change the representations of earlier ones.
    """

    shares_prefixes = False

    def __init__(self, n_items: int, settings: EncoderSettings, bits: DropoutBits):
        super().__init__(n_items, settings, bits, positions=settings.max_length + 1)
        self.mask_embedding = nn.Parameter(torch.empty(1, settings.dim).normal_(std=INITIAL_STD))

    def pack(self, sequences: UserSequences, windows: Windows) -> PackedRows:
        """Windows in rows, each followed by the mask token, item number I. A token sees its whole window."""
        return pack_rows(sequences, windows, causal=False, closing_item=self.n_items)

    def forward(self, batch: PackedRows) -> Tensor:
        """(M, D) representations of the wanted prefixes."""
        return self._run(batch, torch.cat([self.item_embedding, self.mask_embedding]))


class GRU4Rec(SequenceEncoder):
    """Recurrent encoder (after Hidasi et al. 2016): dropout, ``layers`` GRUs of width ``inner_dim``, a projection."""

    def __init__(self, n_items: int, settings: EncoderSettings, bits: DropoutBits):
        super().__init__(n_items, settings, bits)
        self.dropout = Dropout(settings.hidden_dropout, bits)
        self.gru = nn.GRU(settings.dim, settings.inner_dim, settings.layers, batch_first=True)
        self.project = nn.Linear(settings.inner_dim, settings.dim)
        for name, weight in self.gru.named_parameters():
            if "weight" in name:
                nn.init.xavier_uniform_(weight)

    def pack(self, sequences: UserSequences, windows: Windows) -> PackedSteps:
        """Windows, step by step."""
        return pack_steps(sequences, windows)

    def forward(self, batch: PackedSteps) -> Tensor:
        """(M, D) representations of the wanted prefixes."""
        if len(batch.items) == 0:  # a rank without windows
            return self.project(self.item_embedding.new_empty(0, self.settings.inner_dim))
        x = self.dropout(F.embedding(batch.items, self.item_embedding))  # (T, D)
        states = self.gru(PackedSequence(x, batch.windows))[0].data  # (T, inner_dim)
        return self.project(states.index_select(0, batch.outputs))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(module.bias)


def build_encoder(n_items: int, settings: EncoderSettings, bits: DropoutBits) -> SequenceEncoder:
    """A new encoder of the kind that ``settings`` name, with random weights."""
    kinds: dict[str, type[SequenceEncoder]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "bert4rec": BERT4Rec}
    return kinds[settings.encoder](n_items, settings, bits)


ENCODER_FILES = ("encoder.json", "encoder.safetensors")


def save_encoder(encoder: SequenceEncoder, folder: Path) -> None:
    """Write weights as safetensors, and shape and settings as JSON."""
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, folder / "encoder.safetensors")
    shape = encoder.settings.model_dump(include=set(EncoderSettings.model_fields))
    record = {"n_items": encoder.n_items, "settings": shape}
    (folder / "encoder.json").write_text(json.dumps(record, indent=1))


def load_encoder(folder: Path, n_items: int | None = None) -> SequenceEncoder:
    """Read what `save_encoder` wrote, ready for inference.

    Raises:
        InputError: The encoder knows another number of items than ``n_items``.
    """
    record = json.loads((folder / "encoder.json").read_text())
    if n_items is not None and record["n_items"] != n_items:
        raise InputError(
            f"the encoder in {folder} knows {record['n_items']} items, the catalogue has {n_items}; "
            "materialise `raserec_pretrained` again"
        )
    encoder = build_encoder(record["n_items"], EncoderSettings(**record["settings"]), DropoutBits())
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    return encoder.eval()
