"""Click models that no maintained library has: SIM (arXiv 2006.05639) and a SASRec for clicks (arXiv 1808.09781).

Both read the fields of a sample and behaviours of its user before the target: the latest ones, and those that a search
by the target's category finds. Shapes: B samples, K behaviours, D width, H heads. Code 0 is no behaviour.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

ClickModel = Literal["sim", "sasrec"]
CLICK_MODELS: dict[ClickModel, str] = {"sim": "SIM", "sasrec": "SASRec for clicks"}
AGES = 16  # powers of two of how many behaviours ago


@dataclass(frozen=True)
class Clicks:
    """B samples.

    Attributes:
        fields: (B, F) code of each field; the second is the target item.
        history, searched: (B, K) item codes of the latest behaviours and of those found, oldest first.
        rating, searched_rating: (B, K) code of each one's rating.
        age, searched_age: (B, K) how many behaviours ago each was.
    """

    fields: Tensor
    history: Tensor
    rating: Tensor
    age: Tensor
    searched: Tensor
    searched_rating: Tensor
    searched_age: Tensor

    def __getitem__(self, rows: Tensor) -> "Clicks":
        return Clicks(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Embeddings(nn.Module):
    """One table a field, and one of ratings, which make a behaviour of an item."""

    def __init__(self, sizes: list[int], ratings: int, dim: int):
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.ratings = nn.Embedding(ratings, dim)
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02)

    def sample(self, fields: Tensor) -> Tensor:
        """(B, F, D) embeddings of the fields."""
        return torch.stack([table(fields[:, place]) for place, table in enumerate(self.fields)], 1)

    def behaviours(self, items: Tensor, rating: Tensor) -> Tensor:
        """(B, K, D) item and rating."""
        table: nn.Module = self.fields[1]
        out: Tensor = table(items) + self.ratings(rating)
        return out


class SearchedInterest(nn.Module):
    """Multi-head attention of the target over behaviours with their ages (SIM, section 3.2.2).

    For each head: softmax over behaviours of (W_b z_b) · (W_a e_a), then the weighted sum of z_b, where z_b is the
    behaviour's embedding and that of its age. The heads' sums are concatenated.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.age = nn.Embedding(AGES, dim)
        self.key = nn.Linear(2 * dim, heads * dim, bias=False)
        self.query = nn.Linear(dim, heads * dim, bias=False)

    def forward(self, target: Tensor, behaviours: Tensor, age: Tensor, present: Tensor) -> Tensor:
        """(B, H * 2D) from the target (B, D), behaviours (B, K, D), their ages and whether they exist (B, K)."""
        z = torch.cat([behaviours, self.age(bucket(age))], -1)  # (B, K, 2D)
        keys = self.key(z).unflatten(-1, (self.heads, self.dim))  # (B, K, H, D)
        query = self.query(target).unflatten(-1, (self.heads, self.dim))  # (B, H, D)
        scores = torch.einsum("bkhd,bhd->bhk", keys, query)
        scores = scores.masked_fill(~present[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * present[:, None]
        return torch.einsum("bhk,bkd->bhd", weights, z).flatten(1)


def bucket(age: Tensor) -> Tensor:
    """The power of two at or below each age: 0 for 1, 1 for 2 and 3, 2 for 4 to 7; the last for all older ones."""
    return age.clamp_min(1).float().log2().floor().long().clamp_max(AGES - 1)


class Sim(nn.Module):
    """SIM with hard search: the long-term interest of searched behaviours beside the short-term one of the latest."""

    def __init__(self, sizes: list[int], ratings: int, dim: int, heads: int, dropout: float):
        super().__init__()
        self.embed = Embeddings(sizes, ratings, dim)
        self.long, self.short = SearchedInterest(dim, heads), SearchedInterest(dim, heads)
        self.head = tower(len(sizes) * dim + 4 * heads * dim, dropout)

    def forward(self, clicks: Clicks) -> Tensor:
        """(B,) logits."""
        fields = self.embed.sample(clicks.fields)
        target = fields[:, 1]
        found = self.embed.behaviours(clicks.searched, clicks.searched_rating)
        latest = self.embed.behaviours(clicks.history, clicks.rating)
        long = self.long(target, found, clicks.searched_age, clicks.searched > 0)
        short = self.short(target, latest, clicks.age, clicks.history > 0)
        out: Tensor = self.head(torch.cat([fields.flatten(1), long, short], 1))[:, 0]
        return out


class SasrecForClicks(nn.Module):
    """Causal self-attention over the latest behaviours; its last state, the target and their product are judged."""

    causal: Tensor

    def __init__(
        self, sizes: list[int], ratings: int, dim: int, heads: int, dropout: float, length: int, layers: int = 2
    ):
        super().__init__()
        self.embed = Embeddings(sizes, ratings, dim)
        self.place = nn.Parameter(torch.randn(length, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = tower((len(sizes) + 2) * dim, dropout)
        self.register_buffer("causal", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, clicks: Clicks) -> Tensor:
        """(B,) logits."""
        fields = self.embed.sample(clicks.fields)
        target = fields[:, 1]
        x = self.embed.behaviours(clicks.history, clicks.rating) + self.place
        absent = clicks.history == 0
        blocked = self.causal | absent[:, None]  # (B, K, K)
        blocked = blocked & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # a row must see something
        mask = blocked.repeat_interleave(self.layers.layers[0].self_attn.num_heads, 0)
        state = self.layers(x, mask=mask)[:, -1]  # the latest behaviour is last; every sample has one
        out: Tensor = self.head(torch.cat([fields.flatten(1), state, state * target], 1))[:, 0]
        return out


def tower(width: int, dropout: float) -> nn.Sequential:
    """The layers that judge: 256, 128, 1, as in the libraries' examples."""
    return nn.Sequential(
        nn.Linear(width, 256), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(256, 128), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(128, 1),
    )  # fmt: skip
