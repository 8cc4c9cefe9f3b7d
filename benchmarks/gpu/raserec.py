"""RaSeRec on a GPU: whole runs through the pipeline, an epoch of each stage by engine, and the memory bank's search."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np

from benchmarks.measure import FAILED, Column, Figures, clock, silent
from rarec.data.sequences import UserSequences
from rarec.raserec.encoders import load_encoder
from rarec.raserec.finetune import finetune
from rarec.raserec.pretrain import pretrain
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.reports.ranking.records import RankingReport
from rarec.retrieval.exact import ExactSearch
from rarec.retrieval.index import can_use_gpu, gpus_of_this_process, new_index
from rarec.retrieval.memory import MemoryBank, Queries
from rarec.retrieval.settings import MemorySettings
from rarec.training.engine import worker_device
from rarec.training.engine_settings import EngineSettings, Precision
from rarec.types import Float32Array, IntArray

STAGES = ("raserec_pretrained", "raserec_finetuned")
K = 20
FETCHED = K + 16  # what the bank asks an index for first


@dataclass(frozen=True)
class Run:
    """A run of the pipeline: the data set, and settings of both stages beside their seed."""

    data: Path
    dataset: str = "amazon-beauty"
    stage1: tuple[tuple[str, Any], ...] = ()
    stage2: tuple[tuple[str, Any], ...] = ()

    def config(self, seed: int) -> dict[str, dict[str, Any]]:
        """CONFIG of the run."""
        return dict(zip(STAGES, ({**dict(own), "seed": seed} for own in (self.stage1, self.stage2)), strict=True))


def whole_runs(run: Run, seeds: Sequence[int], together: int, homes: Path, keep: Callable[[Figures], None]) -> Figures:
    """Whole runs, ``together`` of them at a time, each in a home of its own below ``homes``; mean and spread last.

    A run that fails tells why in place of its figures. ``keep`` is given all figures so far after each run.
    """
    figures: Figures = {}
    with ThreadPoolExecutor(together) as pool:
        for seed, column in zip(seeds, pool.map(partial(_whole_run, run, homes), seeds), strict=True):
            figures[f"seed {seed}"] = {"runs at once": together, **column}
            keep(figures)
    good = [column for column in figures.values() if FAILED not in column]
    if len(good) > 1:
        rows = {row: [float(column[row]) for column in good] for row in good[0]}
        figures["mean"] = {row: float(np.mean(values)) for row, values in rows.items()}
        figures["standard deviation"] = {row: float(np.std(values, ddof=1)) for row, values in rows.items()}
        keep(figures)
    return figures


def _whole_run(run: Run, homes: Path, seed: int) -> Column:
    home = homes / f"seed-{seed}"
    environment = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "DS_ACCELERATOR")}
    environment |= {"RAREC_HOME": str(home), "RAREC_DATA": str(run.data)}
    command = [sys.executable, "-m", "pipelines.run", "--dataset", run.dataset, "--track", "raserec"]
    started = time.perf_counter()
    made = subprocess.run(
        [*command, "--config", json.dumps(run.config(seed))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if made.returncode:
        print(made.stdout + made.stderr, file=sys.stderr, flush=True)
        return {FAILED: f"exit code {made.returncode}"}
    report = next(line for line in made.stdout.splitlines() if line.startswith("report: "))
    return {
        "whole run, s": seconds,
        **_training_figures(home / "dagster", run.dataset),
        **_test_figures(Path(report.removeprefix("report: ")).with_name("report.json")),
    }


def _test_figures(report: Path) -> Column:
    """HR@10 and NDCG@10 on the test split."""
    scores = RankingReport.model_validate_json(report.read_text()).scores
    return {
        f"{one.model}, {one.protocol}, {metric}": float(one.metrics[metric])
        for one in scores
        if one.split == "test"
        for metric in ("HR@10", "NDCG@10")
    }


def _training_figures(dagster_home: Path, dataset: str) -> Column:
    """What both trainings told Dagster of their epochs, time and memory."""
    import dagster as dg

    column: Column = {}
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        for number, stage in enumerate(STAGES, start=1):
            records = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[dataset])
            materialization = instance.fetch_materializations(records, limit=1).records[0].asset_materialization
            assert materialization is not None
            told: dict[str, Any] = {name: value.value for name, value in materialization.metadata.items()}
            epochs, samples = float(told["epochs"]), float(told["samples"])
            column |= {
                f"stage {number}, epochs": int(epochs),
                f"stage {number}, an epoch, s": samples / float(told["samples_per_s"]) / epochs,
                f"stage {number}, samples a second": float(told["samples_per_s"]),
                f"stage {number}, all, s": float(told["seconds"]),
                f"stage {number}, peak GPU memory, MiB": float(told.get("gpu_peak_memory_mib", "nan")),
            }
    return column


def engine_case(
    sequences: Path, stage1: PretrainSettings, stage2: FinetuneSettings, zero_stage: int, precision: Precision
) -> Column:
    """Some epochs of both stages under one engine."""
    engine = EngineSettings(zero_stage=zero_stage, precision=precision, checkpoint_minutes=0)
    device = worker_device()
    data = UserSequences.load(sequences)
    with TemporaryDirectory() as folder:
        first, second = Path(folder) / "1", Path(folder) / "2"
        for made in (first, second):
            made.mkdir()
        summaries = [pretrain(data, stage1, first, first / "checkpoint", silent, engine)]
        encoder = load_encoder(first).to(device)
        train = data.prefixes("train")
        vectors = encoder.encode(data, train).cpu().numpy()
        bank = MemoryBank.build(data, train, vectors, "benchmark", MemorySettings())
        summaries.append(finetune(data, encoder, bank, stage2, second, second / "checkpoint", silent, engine))
    column: Column = {"ZeRO stage": zero_stage, "precision": precision}
    for number, summary in enumerate(summaries, start=1):
        later = summary["history"][1:] or summary["history"]
        rank = summary["ranks"][0]
        column |= {
            f"stage {number}, epochs": len(summary["history"]),
            f"stage {number}, an epoch, median, s": median(record["train_seconds"] for record in later),
            f"stage {number}, its validation, median, s": median(record["validation_seconds"] for record in later),
            f"stage {number}, samples a second": _rate(summary),
            f"stage {number}, validation NDCG@10": later[-1]["NDCG@10"],
            f"stage {number}, peak GPU memory, MiB": rank.get("gpu_peak_memory_mib", float("nan")),
        }
    return column


def _rate(summary: dict[str, Any]) -> float:
    """Samples a second after the first epoch, which warms up."""
    history = summary["history"]
    later = [record["train_seconds"] for record in history[1:] or history]
    return float(summary["samples"]) / len(history) * len(later) / sum(later)


def bank_case(memories: int, dim: int, few: int, rounds: int) -> Column:
    """Exact search for K + 16 memories a query: Faiss on the CPU, PyTorch on the device, Faiss on the GPU if it can.

    Lists that differ must be as similar to the query, as rounding decides near ties.
    """
    rng = np.random.default_rng(0)
    vectors = _directions(rng, memories, dim)
    queries = _directions(rng, memories, dim)
    settings = MemorySettings()
    index = new_index(vectors, settings, "memories")
    index.add(vectors)
    sides: dict[str, tuple[Any, Float32Array]] = {
        "Faiss, CPU": (index, queries[:few]),
        f"PyTorch, {worker_device().type}": (ExactSearch(vectors, worker_device()), queries),
    }
    if can_use_gpu(settings, FETCHED):
        sides["Faiss, GPU"] = (faiss.index_cpu_to_gpus_list(index, gpus=gpus_of_this_process()), queries)
    column: Column = {"memories, N": memories, "D": dim, "neighbours": FETCHED, "queries of the CPU": few}
    column |= {"queries": memories, "rounds": rounds}
    expected: IntArray | None = None
    for name, (search, asked) in sides.items():
        search.search(asked[:few], FETCHED)  # warms up
        seconds = [clock(partial(search.search, asked, FETCHED)) for _ in range(rounds)]
        column[f"queries a second, {name}"] = len(asked) / min(seconds)
        found: IntArray = search.search(asked[:few], FETCHED)[1]
        if expected is None:
            expected = found
        else:
            column[f"share of equal lists, {name}"] = share_of_equal(vectors, queries[:few], found, expected)
    column["similar_users, all queries, s"] = _similar_users(vectors, queries)
    return column


def _similar_users(vectors: Float32Array, queries: Float32Array) -> float:
    """Seconds of the bank's own search, on whatever it picks, its leakage rules included."""
    users = np.arange(len(vectors) + 1)
    sequences = UserSequences(users * 2, np.zeros(2 * len(vectors), dtype=np.int64), np.arange(2 * len(vectors)), 1)
    prefixes = users[:-1] * 2
    bank = MemoryBank.build(sequences, prefixes, vectors, "benchmark", MemorySettings())
    asked = Queries.of(sequences, prefixes, queries)
    bank.similar_users(asked[np.arange(min(len(asked), 64))], K)
    return clock(partial(bank.similar_users, asked, K))


def share_of_equal(vectors: Float32Array, queries: Float32Array, found: IntArray, expected: IntArray) -> float:
    """Share of equal lists.

    Raises:
        AssertionError: others are not as similar to the query.
    """
    equal = (found == expected).all(1)
    for row in np.flatnonzero(~equal).tolist():
        ours, theirs = (np.sort(vectors[ids[row]] @ queries[row]) for ids in (found, expected))
        assert len(np.unique(found[row])) == found.shape[1], row
        assert np.abs(ours - theirs).max() < 1e-5, (row, ours, theirs)
    return float(equal.mean())


def _directions(rng: np.random.Generator, rows: int, dim: int) -> Float32Array:
    drawn = rng.standard_normal((rows, dim), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
