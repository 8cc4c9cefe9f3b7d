"""Predictions for validation and test samples: untuned and by each adapter, with recent and retrieved histories."""

import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from rarec.config import Settings
from rarec.data.ctr import CtrSamples, draw
from rarec.rella.language_model import Answers
from rarec.rella.prompt_source import PromptJob, PromptSource, open_prompts
from rarec.rella.scoring import score
from rarec.rella.training_samples import HISTORIES, History, Mode, Variant, asked
from rarec.rella.tuning import load_adapter
from rarec.text.tokens import PromptTokens
from rarec.training.engine import keep_freed_memory, worker_device
from rarec.training.job import Place
from rarec.training.progress import ProgressReporter, launched_rank, worker_main
from rarec.types import Split

UNTUNED = "untuned"
SCORED: tuple[Split, ...] = ("valid", "test")


class PredictionSettings(Settings):
    """How many samples to predict, and in what batches."""

    valid_samples: int = Field(default=10_000, ge=2, description="Most validation samples, drawn with the seed.")
    test_samples: int = Field(default=100_000, ge=2, description="Most test samples, drawn with the seed.")
    batch_tokens: int = Field(
        default=16_384,
        ge=64,
        description="Most tokens of a padded batch of prompts. Small Llamas on a CPU use at most 2,048, whose states "
        "stay in the processor's cache.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of the draws.")

    def most(self, split: Split) -> int:
        """Most samples of a split."""
        return self.valid_samples if split == "valid" else self.test_samples


def untuned(history: History) -> str:
    """Name of predictions by the language model without adapter."""
    return f"{UNTUNED}, {history}"


def comparisons(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """(baseline, candidate) for each question: does retrieval help before tuning, does tuning, does the mixture?"""
    model = variants[0].label("retrieved")
    pairs = [(untuned("recent"), untuned("retrieved")), (untuned("retrieved"), model)]
    return pairs + _beside(variants, (("recent", "mixed"), ("retrieved", "mixed")))


WITHOUT: tuple[tuple[Mode, Mode], ...] = (
    ("random", "retrieved"), ("mixed-random", "mixed"),  # similarity in training
    ("recent", "mixed-half"), ("retrieved", "mixed-half"), ("mixed-half", "mixed"),  # as many prompts, as many samples
)  # fmt: skip
"""Pairs of modes that differ by what retrieval or the mixture is said to do, the one without it first."""


def controls(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """(without, with) what is said to help: other histories in the prompt, and the modes of `WITHOUT` of each seed."""
    pairs = [
        (one.label(history), one.label("retrieved"))
        for one, history in asked(variants)
        if one.mode == "mixed" and history != "retrieved"
    ]
    return pairs + _beside(variants, WITHOUT)


def _beside(variants: Sequence[Variant], modes: Iterable[tuple[Mode, Mode]]) -> list[tuple[str, str]]:
    """Predictions of adapters of these pairs of modes with the same seed, by retrieved histories or random ones."""
    made = {(one.mode, one.seed): one for one in variants}
    return [
        (other.label(other.other), one.label(one.other))
        for one in variants
        for without, mode in modes
        if one.mode == mode and (other := made.get((without, one.seed)))
    ]


@dataclass(frozen=True)
class Predictor:
    """Everything that a language model's prompts need."""

    source: PromptSource
    prompts: PromptTokens
    answers: Answers
    device: torch.device
    batch_tokens: int

    def predict(
        self, model: Any, samples: np.ndarray, history: History, report: Callable[..., None], seed: int = 0
    ) -> tuple[np.ndarray, int]:
        """(n,) probabilities of yes, and how many behaviours were left out because of the token limit.

        Args:
            seed: Seed of random histories.
        """
        source = self.source.randomised(seed) if history == "random" else self.source
        rows = source.rows(samples, history != "recent")
        probability, dropped = score(model, self.prompts, rows, self.answers, self.device, self.batch_tokens, report)
        return probability, int(dropped.sum())


def predict_all(
    predictor: Predictor,
    model: Any,
    adapters: Sequence[tuple[Variant, Path]],
    base: str,
    samples: dict[Split, np.ndarray],
    report: Callable[..., None],
    kept: Path,
) -> tuple[dict[Split, dict[str, np.ndarray]], dict[str, float]]:
    """Predict all samples with the language model as it is and with each adapter.

    Returns probabilities by split and model; and the number of prompts, how many of them were scored now and in how
    many seconds, and how many behaviours were dropped.

    Args:
        model: The language model without adapter.
        base: Its fingerprint.
        kept: Folder that keeps the probabilities of each model and split. What is there already is not computed again.
    """
    predictions: dict[Split, dict[str, np.ndarray]] = {split: {} for split in samples}
    dropped = prompts = scored = 0
    kept.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    def run(label: str, model: Any, history: History, seed: int = 0) -> None:
        nonlocal dropped, prompts, scored
        for split, rows in samples.items():
            file = kept / f"{label}, {split}.npz"
            found = _read(file)
            if found is None:
                found = predictor.predict(model, rows, history, partial(report, stage=f"{label}, {split}"), seed)
                _write(file, *found)
                scored += len(rows)
            predictions[split][label] = found[0]
            dropped += found[1]
            prompts += len(rows)

    for history in HISTORIES:
        run(untuned(history), model, history)
    every = asked([variant for variant, _ in adapters])
    for variant, folder in adapters:
        adapted = load_adapter(model, folder, base)
        for one, history in every:
            if one == variant:
                run(variant.label(history), adapted, history, variant.seed)
        model = adapted.unload()
    seconds = time.perf_counter() - started
    return predictions, {"prompts": prompts, "scored": scored, "seconds": seconds, "behaviours_dropped": dropped}


def _read(file: Path) -> tuple[np.ndarray, int] | None:
    """What an earlier attempt left, if it can be read."""
    try:
        with np.load(file) as kept:
            return kept["probability"], int(kept["dropped"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"{file} is damaged ({error}); its prompts are scored again", flush=True)
        return None


def _write(file: Path, probability: np.ndarray, dropped: int) -> None:
    """Write all or nothing, even if the machine fails."""
    beside = file.with_suffix(".new")
    with beside.open("wb") as stream:
        np.savez(stream, probability=probability, dropped=dropped)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, file)


class Adapter(Settings):
    """A tuned adapter, by the name of its variant."""

    name: str
    folder: Path


class PredictJob(PromptJob):
    """Score samples with the language model as it is and with each adapter."""

    settings: PredictionSettings
    adapters: tuple[Adapter, ...]


def gather_predictions(folder: Path, samples: CtrSamples, settings: PredictionSettings) -> dict[Split, pd.DataFrame]:
    """Combine the ranks' shares into ``<split>.parquet``, with labels, in the order of the samples.

    Raises:
        RuntimeError: The share of a rank is missing.
    """
    tables: dict[Split, pd.DataFrame] = {}
    for split in SCORED:
        shares = sorted(folder.glob(f"{split}-*.parquet"))
        table = pd.concat([pd.read_parquet(share) for share in shares]).sort_values("sample", ignore_index=True)
        asked = draw(samples, split, settings.most(split), settings.seed)
        if not np.array_equal(table["sample"], asked):
            raise RuntimeError(
                f"{len(table)} of {len(asked)} {split} predictions came back from the workers' {len(shares)} shares; "
                "run again, which keeps what is finished"
            )
        table.insert(1, "label", samples.label[table["sample"].to_numpy()])
        table.to_parquet(folder / f"{split}.parquet", index=False)
        for share in shares:
            share.unlink()
        tables[split] = table
    return tables


def gather_facts(folder: Path) -> list[dict[str, float]]:
    """What each rank reported about its work. The files are removed."""
    files = sorted(folder.glob("facts-*.json"))
    facts = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return facts


def work(job: PredictJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry: writes this rank's share as ``<split>-<rank>.parquet``."""
    keep_freed_memory()
    rank, world = launched_rank(), int(os.environ.get("WORLD_SIZE", "1"))
    settings = job.settings
    source, reference, prompts, answers = open_prompts(job)
    predictor = Predictor(source, prompts, answers, worker_device(), settings.batch_tokens)
    samples = {split: draw(source.samples, split, settings.most(split), settings.seed)[rank::world] for split in SCORED}
    predictions, facts = predict_all(
        predictor,
        reference.model(worker_device()),
        [(Variant.named(adapter.name), adapter.folder) for adapter in job.adapters],
        job.base,
        samples,
        reporter.report,
        place.checkpoint / f"{rank}-of-{world}",
    )
    output = place.output
    for split, columns in predictions.items():
        pd.DataFrame({"sample": samples[split], **columns}).to_parquet(output / f"{split}-{rank}.parquet", index=False)
    (output / f"facts-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    worker_main(PredictJob, work)
