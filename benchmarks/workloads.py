"""The sequences that benchmarks run on, and how much of the work they do."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarec.data.download import locate_source
from rarec.data.raw import read_raw
from rarec.data.sequences import UserSequences, build_sequences
from rarec.data.spec import builtin_specs
from rarec.data.tables import build_tables

REAL = "amazon-beauty"


@dataclass(frozen=True)
class Effort:
    """How much is measured; what is left out is extrapolated in proportion, and the tables say from how much."""

    plain_steps: int = 10
    """Training steps a round of the plain side."""
    our_steps: int = 100
    """Training steps a round of our side: more, since its batches vary in size and a step is short."""
    rounds: int = 3
    """Measured rounds; one more warms up."""
    queries: int = 2048
    """Queries that the plain memory search answers."""
    users: int = 1000
    """Users that the plain evaluation ranks."""
    scale_users: int = 2000
    """Users of the scaling benchmark's smallest size."""
    scale_items: int = 5000
    """Items of the scaling benchmark, at every size."""
    multiples: tuple[int, ...] = (1, 4, 16)
    """Sizes of the scaling benchmark."""


def synthetic(users: int, items: int, seed: int = 0) -> UserSequences:
    """Random sequences of Amazon Beauty's shape: 5 to 200 interactions a user, mean 9, median 6; long-tailed items."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(5 + rng.lognormal(np.log(1.8), 1.35, users).astype(np.int64), 200)
    popularity = 1 / (50 + np.arange(items)) ** 0.8
    total = int(lengths.sum())
    drawn = rng.choice(items, total, p=popularity / popularity.sum())
    offsets = np.concatenate([[0], lengths.cumsum()])
    return UserSequences(offsets, drawn, np.arange(total), items)


def amazon_beauty(data: Path) -> UserSequences:
    """The real data set from the folder of data sets ``data``.

    Raises:
        InputError: its files are incomplete or damaged.
    """
    spec = builtin_specs()[REAL]
    with tempfile.TemporaryDirectory() as cache:
        located = locate_source(spec, data, Path(cache))
        tables = build_tables(spec, read_raw(spec, located.folder))
    rows = tables.interactions
    return build_sequences(
        rows["user_index"], rows["item_index"], rows["timestamp"], len(tables.users), len(tables.items)
    )


def workloads(data: Path | None) -> dict[str, UserSequences]:
    """Synthetic sequences always; Amazon Beauty if ``data`` has its folder."""
    chosen = {"synthetic": synthetic(users=4000, items=5000)}
    if data is not None and (data / REAL).is_dir():
        chosen[REAL] = amazon_beauty(data)
    return chosen
