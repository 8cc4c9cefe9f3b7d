"""Small sequences, settings and checks that the tests of the RaSeRec core share."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lone_worker import SINGLE_PROCESS

from rarec.data.sequences import UserSequences
from rarec.raserec.settings import FinetuneSettings, PretrainSettings

SMALL = {"dim": 8, "inner_dim": 12, "layers": 2, "heads": 2, "max_length": 7}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}

# A chain of 60 items is learnt within a second with these.
QUICK = PretrainSettings(
    dim=16, inner_dim=32, layers=1, hidden_dropout=0.1, attention_dropout=0.1, max_length=12, batch_size=64,
    learning_rate=1e-2, epochs=8, patience=8, seed=7,
)  # fmt: skip
QUICK_FINETUNE = FinetuneSettings(
    memories=6, beta=0.5, heads=2, inner_dim=32, dropout=0.1, batch_size=128, learning_rate=2e-3, epochs=3, patience=3
)


def sequences_of(items: Sequence[Sequence[int]], n_items: int, times: Sequence[Sequence[int]] | None = None):
    """Sequences from one list of items a user; without ``times`` every interaction has the next second."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in items])]).astype(np.int64)
    flat = np.array([item for one in items for item in one], dtype=np.int64)
    clock = np.arange(len(flat)) if times is None else np.array([t for one in times for t in one], dtype=np.int64)
    return UserSequences(offsets, flat, clock, n_items)


def random_sequences(lengths: Sequence[int], n_items: int, seed: int = 0) -> UserSequences:
    """Random items, and times that rise within a user and interleave (with ties) between users."""
    rng = np.random.default_rng(seed)
    items = [rng.integers(0, n_items, n).tolist() for n in lengths]
    times = [np.sort(rng.integers(0, 50, n)).tolist() for n in lengths]
    return sequences_of(items, n_items, times)


def chain_sequences(users: int = 150, n_items: int = 60, shuffled: bool = False, seed: int = 3) -> UserSequences:
    """Every item has one successor in a fixed cycle; ``shuffled`` draws every item at random instead."""
    rng = np.random.default_rng(seed)
    cycle = rng.permutation(n_items)
    lengths = rng.integers(5, 10, users)
    starts = rng.integers(0, n_items, users)
    items = [cycle[(start + np.arange(n)) % n_items].tolist() for start, n in zip(starts, lengths, strict=True)]
    if shuffled:
        items = [rng.integers(0, n_items, n).tolist() for n in lengths]
    return sequences_of(items, n_items)


def history_of(sequences: UserSequences, prefix: int, max_length: int, stride: int = 1) -> list[int]:
    """The items that an encoder reads for a prefix: drop ``stride`` of the oldest until they fit."""
    user = max(u for u in range(sequences.n_users) if sequences.offsets[u] <= prefix)
    history = sequences.items[sequences.offsets[user] : prefix + 1].tolist()
    while len(history) > max_length:
        history = history[stride:]
    return history


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, in double precision."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run_on_two_ranks(worker: Path, folder: Path) -> None:
    """Run a worker script, which writes into ``folder``, in two processes under torchrun."""
    environment = {name: value for name, value in os.environ.items() if name not in SINGLE_PROCESS}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(worker), str(folder)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
