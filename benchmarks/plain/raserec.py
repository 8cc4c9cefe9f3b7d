"""The plain way to do what RaRec does: the baseline of every ratio.

Written from the papers' method with PyTorch's standard modules, its own dropout and optimiser, and no thought for
speed: every prefix is right-padded to the maximum length and encoded on its own, once for each use; logits are written
out in full, memories projected for every query, users ranked one by one. Losses, neighbours and ranks equal ours
(tests/benchmarks/test_smoke.py).
"""

import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarec.data.sequences import UserSequences, context_starts
from rarec.raserec.encoders import SASRec, SequenceEncoder
from rarec.raserec.pretrain import SameNextItem
from rarec.raserec.retrieval_module import Channel, CrossAttention
from rarec.raserec.settings import EncoderSettings, FinetuneSettings, PretrainSettings
from rarec.retrieval.index import normalised
from rarec.retrieval.memory import MemoryBank, Queries, first_allowed
from rarec.types import Float32Array, IntArray

NORM_EPS = 1e-12
SURPLUS = 16  # memories fetched beyond K, to replace those of the query's own future


class PlainLayer(nn.Module):
    """Post-norm transformer layer over (B, L, D)."""

    def __init__(self, settings: EncoderSettings):
        super().__init__()
        dim = settings.dim
        self.attention = nn.MultiheadAttention(dim, settings.heads, settings.attention_dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.up = nn.Linear(dim, settings.inner_dim)
        self.down = nn.Linear(settings.inner_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(settings.hidden_dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """``hidden`` (L, L): True where a position may not see another."""
        attended, _ = self.attention(x, x, x, attn_mask=hidden, need_weights=False)
        x = self.attention_norm(x + self.dropout(attended))
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class PlainEncoder(nn.Module):
    """SASRec with the weights of ``encoder``: padded prefixes in, the representation of each one's last item out."""

    def __init__(self, encoder: SequenceEncoder):
        super().__init__()
        assert isinstance(encoder, SASRec)
        settings = encoder.settings
        self.item_embedding = nn.Embedding(*encoder.item_embedding.shape)
        self.position_embedding = nn.Embedding(*encoder.position_embedding.shape)
        self.norm = nn.LayerNorm(settings.dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(settings.hidden_dropout)
        self.layers = nn.ModuleList(PlainLayer(settings) for _ in encoder.layers)
        weights = encoder.state_dict()
        for name in ("item_embedding", "position_embedding"):
            weights[f"{name}.weight"] = weights.pop(name)
        for number in range(len(self.layers)):
            at = f"layers.{number}.attention"
            for part in ("weight", "bias"):
                weights[f"{at}.in_proj_{part}"] = weights.pop(f"{at}.qkv.{part}")
                weights[f"{at}.out_proj.{part}"] = weights.pop(f"{at}.out.{part}")
        self.load_state_dict(weights)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """items (B, L) and lengths (B,) to (B, D)."""
        place = torch.arange(items.shape[1])
        x = self.dropout(self.norm(self.item_embedding(items) + self.position_embedding(place)))
        for layer in self.layers:
            x = layer(x, place > place[:, None])
        return x[torch.arange(len(x)), lengths - 1]


def padded(sequences: UserSequences, prefixes: IntArray, max_length: int) -> tuple[Tensor, Tensor]:
    """The last ``max_length`` items of every prefix, padded with item 0 on the right: (B, L) and real lengths (B,)."""
    starts = context_starts(sequences, prefixes, max_length, stride=1)
    lengths = prefixes + 1 - starts
    place = np.arange(max_length)
    source = np.where(place < lengths[:, None], starts[:, None] + place, 0)
    items = np.where(place < lengths[:, None], sequences.items[source], 0)
    return torch.from_numpy(items), torch.from_numpy(lengths)


def plain_info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE of the 2B views: each must find its partner among all others."""
    views = torch.cat([first, second])
    scores = (views @ views.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(scores, torch.arange(len(views)).roll(len(first)))


class PlainPretraining:
    """Stage 1 with three passes a step: one to recommend, one for each of the two views."""

    def __init__(self, sequences: UserSequences, encoder: SequenceEncoder, settings: PretrainSettings):
        torch.manual_seed(settings.seed)
        self.sequences = sequences
        self.settings = settings
        self.encoder = PlainEncoder(encoder)
        self.parameters = list(self.encoder.parameters())
        self.prefixes = sequences.prefixes("train")
        self.partners = SameNextItem(sequences, self.prefixes).draw(np.random.default_rng(settings.seed))

    def loss(self, rows: IntArray) -> Tensor:
        """Mean loss of the training prefixes numbered ``rows``."""
        prefixes, partners = self.prefixes[rows], self.partners[rows]
        own, first, second = (
            self.encoder(*padded(self.sequences, some, self.settings.max_length))
            for some in (prefixes, prefixes, partners)
        )
        logits = own @ self.encoder.item_embedding.weight.T
        recommendation = F.cross_entropy(logits, torch.from_numpy(self.sequences.next_items(prefixes)))
        contrast = plain_info_nce(first, second, self.settings.temperature)
        return recommendation + self.settings.contrastive_weight * contrast


def attention_like(ours: CrossAttention, dropout: float) -> nn.MultiheadAttention:
    """PyTorch's attention with the weights of ours, whose keys have no bias."""
    dim = ours.out.in_features
    plain = nn.MultiheadAttention(dim, ours.heads, dropout, batch_first=True)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        plain.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(dim), ours.value.bias]))
        plain.out_proj.load_state_dict(ours.out.state_dict())
    return plain


class PlainChannel(nn.Module):
    """A channel of the retrieval-augmented module that projects every memory for every query."""

    def __init__(self, channel: Channel, settings: FinetuneSettings):
        super().__init__()
        self.first = attention_like(channel.first, settings.dropout)
        self.second = attention_like(channel.second, settings.dropout)
        self.up = nn.Linear(channel.up.in_features, channel.up.out_features)
        self.down = nn.Linear(channel.down.in_features, channel.down.out_features)
        self.norm = nn.LayerNorm(channel.down.out_features, eps=NORM_EPS)
        self.dropout = nn.Dropout(settings.dropout)
        for name in ("up", "down", "norm"):
            getattr(self, name).load_state_dict(getattr(channel, name).state_dict())

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, absent: Tensor) -> Tensor:
        """query (B, D), keys and values (B, K, D), absent (B, K) to (B, D)."""
        query = query[:, None]
        x, _ = self.first(query, keys, values, key_padding_mask=absent, need_weights=False)
        x = self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        x, _ = self.second(x, keys, values, key_padding_mask=absent, need_weights=False)
        return x[:, 0]


class PlainFinetuning:
    """Stage 2 that encodes, searches and projects in every step; channel 1 alone, as the paper's beta = 1 asks for."""

    def __init__(
        self,
        sequences: UserSequences,
        encoder: SequenceEncoder,
        bank: MemoryBank,
        channel: Channel,
        settings: FinetuneSettings,
    ):
        torch.manual_seed(settings.seed)
        self.sequences = sequences
        self.settings = settings
        self.max_length = encoder.settings.max_length
        self.encoder = PlainEncoder(encoder).eval().requires_grad_(False)
        self.channel = PlainChannel(channel, settings)
        self.parameters = list(self.channel.parameters())
        self.prefixes = bank.prefixes
        self.bank = bank
        self.representations = torch.from_numpy(bank.representations)
        self.targets = torch.from_numpy(bank.targets)
        self.index = flat_index(bank.representations)

    def loss(self, rows: IntArray) -> Tensor:
        """Mean loss of the training prefixes numbered ``rows``."""
        with torch.no_grad():
            query = self.encoder(*padded(self.sequences, self.prefixes[rows], self.max_length))
        asked = Queries.of(self.sequences, self.prefixes[rows], query.numpy())
        ids = torch.from_numpy(flat_neighbours(self.index, self.bank, asked, self.settings.memories))
        absent, ids = ids < 0, ids.clamp_min(0)
        items = self.encoder.item_embedding.weight
        lonely = absent.all(1, keepdim=True)  # attention to nothing would be NaN
        retrieved = self.channel(query, self.representations[ids], items[self.targets[ids]], absent & ~lonely)
        mixed = self.settings.alpha * query + (1 - self.settings.alpha) * retrieved
        return F.cross_entropy(torch.where(lonely, query, mixed) @ items.T, self.targets[torch.from_numpy(rows)])


def flat_index(representations: Float32Array) -> faiss.IndexFlatIP:
    """Faiss' exact index over the directions of ``representations``."""
    index = faiss.IndexFlatIP(representations.shape[1])
    index.add(normalised(representations))
    return index


def flat_neighbours(index: faiss.IndexFlatIP, bank: MemoryBank, queries: Queries, k: int) -> IntArray:
    """(Q, k) the allowed among the k + 16 nearest memories, -1 behind them."""
    _, ids = index.search(normalised(queries.vectors), min(k + SURPLUS, len(bank)))
    return first_allowed(ids, bank.allowed(queries, ids), k)[0]


class Steps:
    """Training steps with PyTorch's Adam; each call of `run` goes on with the next batches of shuffled samples."""

    def __init__(
        self,
        loss: Callable[[IntArray], Tensor],
        parameters: list[nn.Parameter],
        learning_rate: float,
        samples: int,
        batch_size: int,
    ):
        self.loss = loss
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        self.rng = np.random.default_rng(0)
        self.samples = samples
        self.batch_size = min(batch_size, samples)

    def run(self, steps: int) -> float:
        """Seconds a sample, over ``steps`` steps."""
        batches = [self.rng.choice(self.samples, self.batch_size, replace=False) for _ in range(steps)]
        started = time.perf_counter()
        for rows in batches:
            self.optimizer.zero_grad()
            self.loss(rows).backward()
            self.optimizer.step()
        return (time.perf_counter() - started) / (steps * self.batch_size)


def plain_ranks(
    queries: Float32Array, items: Float32Array, targets: IntArray, seen: list[IntArray], top_n: int = 0
) -> list[tuple[int, int, list[IntArray]]]:
    """Unmasked rank, masked rank and the two lists of best items of every user, one user after the other."""
    results = []
    for query, target, known in zip(queries, targets, seen, strict=True):
        scores = items @ query
        masked = scores.copy()
        masked[known] = -np.inf
        lists = [_best(some, top_n) for some in (scores, masked)] if top_n else []
        masked[target] = scores[target]
        results.append((_rank(scores, target), _rank(masked, target), lists))
    return results


def _rank(scores: Float32Array, target: int) -> int:
    ahead = (scores > scores[target]).sum() + (scores[:target] == scores[target]).sum()
    return 1 + int(ahead)


def _best(scores: Float32Array, n: int) -> IntArray:
    best = np.argpartition(-scores, n)[:n] if n < len(scores) else np.arange(len(scores))
    return best[np.argsort(-scores[best], kind="stable")]
