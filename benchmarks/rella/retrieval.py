"""Behaviour retrieval, and the histories of a large data set."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Column, Figures, alternate, clock, peak_mib, ratio, timing
from benchmarks.plain.rella import plain_behaviours
from benchmarks.workloads import (
    BEHAVIOURS,
    ML_1M_SPREAD,
    ML_25M_SPREAD,
    Effort,
    Histories,
    Setup,
    directions,
    histories,
)
from rarec.data.ctr import CtrSamples, CtrSettings, build_ctr_samples
from rarec.retrieval.subr import distance_type, recent_behaviours, retrieve_behaviours
from rarec.training.engine import peak_memory_mib
from rarec.types import Distances, Float32Array, IntArray

DIMENSIONS = (512, 128)  # of item vectors: the paper's, and what a scratch model gives
ML_25M_USERS, ML_25M_INTERACTIONS = 162_541, 25_000_095


def subr(setup: Setup) -> Figures:
    """Behaviour retrieval (K = 30) for every sample of histories like MovieLens-1M's.

    `retrieve_behaviours` against a loop over samples (inner products with the history, `argsort`, the last K sorted by
    time). The vectors are random unit vectors; D is in the header. The loop answers a sample of the samples. Samples a
    second a core are those of one thread. Both ratios are to the loop at the same time. Peak memory is what is needed
    beyond vectors, interactions, samples and result, for N samples and for those of four times as many users.
    """
    effort = setup.effort
    sizes = (effort.retrieval_users, effort.retrieval_items, effort.retrieval_interactions)
    small = histories(*sizes, ML_1M_SPREAD)
    large = histories(4 * sizes[0], sizes[1], 4 * sizes[2], ML_1M_SPREAD, seed=1)
    return {f"D = {dim}": _subr(small, large, dim, effort) for dim in DIMENSIONS}


def _subr(small: Histories, large: Histories, dim: int, effort: Effort) -> Column:
    vectors = directions(effort.retrieval_items, dim)
    position = small.targets()
    kept = _empty(small, position)
    sample = np.sort(np.random.default_rng(0).permutation(len(position))[: effort.plain_retrievals])
    arguments = (vectors, small.items, small.offsets)
    threads = torch.get_num_threads()
    expected: list[IntArray] = []

    def ours(use: int) -> None:
        torch.set_num_threads(use)
        retrieve_behaviours(*arguments, position, BEHAVIOURS, out=kept)
        torch.set_num_threads(threads)

    def plain() -> None:
        expected[:] = plain_behaviours(*arguments, position[sample], BEHAVIOURS)

    retrieve_behaviours(*arguments, position[:100], BEHAVIOURS)  # warms up
    sides: dict[str, Callable[[], Any]] = {"core": partial(ours, 1), "ours": partial(ours, threads), "plain": plain}
    seconds = alternate(sides, effort.rounds, warm_up=False)
    equal = _share_of_equal(vectors, small.items, position[sample], kept[sample], expected)
    rates = {side: [len(position) / s for s in seconds[side]] for side in ("core", "ours")}
    plain_seconds = [s * len(position) / len(sample) for s in seconds["plain"]]
    targets = large.targets()
    result = _empty(large, targets)
    peaks = [
        peak_mib(partial(retrieve_behaviours, vectors, data.items, data.offsets, of, BEHAVIOURS, out=out))
        for data, of, out in ((small, position, kept), (large, targets, result))
    ]
    return {
        "users": len(small.lengths),
        "items": len(vectors),
        "samples, N": len(position),
        "past behaviours a sample, mean": small.mean_history(position),
        "rounds": effort.rounds,
        "samples of the plain side": len(sample),
        **timing("N samples, ours on one thread, s", seconds["core"]),
        f"N samples, ours on {threads} threads, s": median(seconds["ours"]),
        **timing("N samples, plain, s (extrapolated)", plain_seconds),
        "samples a second a core, ours, median": median(rates["core"]),
        f"samples a second on {threads} threads, ours, median": median(rates["ours"]),
        "ratio, ours on one thread": ratio(plain_seconds, seconds["core"]),
        f"ratio, ours on {threads} threads": ratio(plain_seconds, seconds["ours"]),
        "share of equal lists": equal,
        "peak memory, N samples, MiB": peaks[0],
        "peak memory, 4 N samples, MiB": peaks[1],
        "peak memory, bytes a further sample": (peaks[1] - peaks[0]) * 2**20 / (len(targets) - len(position)),
    }


def ctr_scale(setup: Setup) -> Figures:
    """Samples and both histories (K = 30) of data of MovieLens-25M's shape.

    They are written to memory-mapped files in a temporary folder: whole, nothing extrapolated, measured once. The
    vectors are random unit vectors of D = 512. The process's peak includes the libraries, the inputs (four columns of
    interactions, and the vectors) and the pages of both files that are in memory. What was held before is the libraries
    and the items. A part of the retrieved histories is checked with the plain loop.
    """
    effort = setup.effort
    users = max(2, round(effort.ctr_interactions * ML_25M_USERS / ML_25M_INTERACTIONS))
    data = histories(users, effort.ctr_items, effort.ctr_interactions, ML_25M_SPREAD)
    with tempfile.TemporaryDirectory() as folder:
        column: Column = {}
        beyond = peak_mib(partial(_ctr_scale, data, effort, Path(folder), column))
        column |= {
            "peak memory beyond what was held before, MiB": beyond,
            "peak memory of the process, MiB": peak_memory_mib(),
        }
    return {f"{len(data.items) / 1e6:.3g} million": column}


def _ctr_scale(data: Histories, effort: Effort, folder: Path, column: Column) -> None:
    """Fill ``column`` with the figures."""
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(len(data.lengths), dtype=np.int32), data.lengths)
    # A user begins at any time of 20 years and rates a film a minute.
    timestamp = (rng.integers(0, 20 * 365 * 86_400, len(data.lengths)) - 60 * data.offsets[:-1])[user]
    timestamp += 60 * np.arange(len(user))
    liked = rng.random(len(user), dtype=np.float32) < 0.6
    vectors = directions(effort.ctr_items, DIMENSIONS[0])
    made: list[CtrSamples] = []
    settings = CtrSettings.model_validate({})
    building = clock(
        lambda: made.append(build_ctr_samples(user, timestamp, liked, len(data.lengths), "clock", settings))
    )
    (samples,) = made
    files = [
        np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", distance_type(samples.offsets), (len(samples), BEHAVIOURS)
        )
        for name in ("recent", "retrieved")
    ]
    recent, retrieved = files
    started = time.perf_counter()
    recent_behaviours(samples.offsets, samples.position, BEHAVIOURS, out=recent)
    recent.flush()
    latest = time.perf_counter() - started
    started = time.perf_counter()
    retrieve_behaviours(vectors, data.items, samples.offsets, samples.position, BEHAVIOURS, out=retrieved)
    retrieved.flush()
    retrieval = time.perf_counter() - started
    chosen = rng.permutation(len(samples))[:200]
    position = samples.position[chosen]
    expected = plain_behaviours(vectors, data.items, samples.offsets, position, BEHAVIOURS)
    equal = _share_of_equal(vectors, data.items, position, retrieved[chosen], expected)
    column |= {
        "users": len(data.lengths),
        "items": len(vectors),
        "interactions": len(data.items),
        "samples": len(samples),
        "past behaviours a sample, mean": data.mean_history(samples.position),
        "longest history": int(data.lengths.max()),
        "build samples, s": building,
        "recent histories, s": latest,
        "retrieved histories, s": retrieval,
        "all of it, s": building + latest + retrieval,
        "samples a second, retrieved": len(samples) / retrieval,
        "both files, MiB": sum(file.nbytes for file in files) / 2**20,
        "share of equal lists in the part": equal,
    }


def _empty(data: Histories, position: IntArray) -> Distances:
    """Room for the result, already part of this process."""
    return np.full((len(position), BEHAVIOURS), 0, dtype=distance_type(data.offsets))


def _share_of_equal(
    vectors: Float32Array, items: IntArray, position: IntArray, kept: Distances, expected: list[IntArray]
) -> float:
    """Share of equal lists; others must be as similar to the target, as rounding decides near ties.

    Raises:
        AssertionError: they are not.
    """
    equal = 0
    for target, distances, wanted in zip(position.tolist(), kept.astype(np.int64), expected, strict=True):
        found = target - distances[distances > 0]
        if np.array_equal(found, wanted):
            equal += 1
            continue
        sums = [(vectors[items[rows]] @ vectors[items[target]]).sum() for rows in (found, wanted)]
        assert len(found) == len(wanted), (target, len(found), len(wanted))
        assert abs(sums[0] - sums[1]) < 1e-4, (target, sums)
    return equal / len(expected)
