"""Stage 1 of RaSeRec: collaborative-based pre-training (section 3.2).

The loss of a prefix is the full softmax cross-entropy of its next item, plus the InfoNCE between the prefix and another
prefix, drawn at random, with the same next item. The official code encodes every prefix three times, padded to 50: once
to recommend and once for each view. Here, one causal pass over a window of a user's sequence serves all its prefixes.
The representation that recommends is also the first view: it is a dropout sample of the same distribution, and
independent of the second view.

The expected gradient differs from the official one. A step holds whole windows, so a prefix shares its dropout masks
with its neighbours, and meets them among its in-batch negatives, where random batches rarely have them. No negatives
are left out, neither those of the same user nor those with the same next item.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rarec.data.sequences import UserSequences, Windows, single_windows
from rarec.errors import InputError
from rarec.metrics.ranking import full_ranking, ranking_table
from rarec.raserec.encoders import SequenceEncoder, build_encoder, save_encoder
from rarec.raserec.losses import info_nce_loss
from rarec.raserec.settings import PretrainSettings
from rarec.training.device import on_device
from rarec.training.dropout import DropoutBits
from rarec.training.engine import (
    gather_rows,
    gathered,
    is_sharded,
    keep_freed_memory,
    rank,
    shard,
    unshard,
    worker_device,
    world_size,
)
from rarec.training.engine_settings import EngineSettings
from rarec.training.fit import fit
from rarec.training.job import Place, WorkerJob
from rarec.training.progress import ProgressReporter, ReportProgress, quiet, worker_main
from rarec.training.softmax import full_softmax_loss, single_or_double
from rarec.types import IntArray


class SameNextItem:
    """For every training prefix, the other training prefixes with the same next item."""

    def __init__(self, sequences: UserSequences, prefixes: IntArray):
        self.prefixes = prefixes
        targets = sequences.next_items(prefixes)
        self._by_target = np.argsort(targets, kind="stable")
        counts = np.bincount(targets, minlength=sequences.n_items)
        self._first = (np.cumsum(counts) - counts)[targets]
        self._size = counts[targets]
        self._place = np.empty(len(prefixes), dtype=np.int64)
        self._place[self._by_target] = np.arange(len(prefixes))
        self._place -= self._first

    def draw(self, generator: np.random.Generator) -> IntArray:
        """(P,) a partner for each prefix, drawn uniformly; a prefix that has none is its own partner."""
        chosen = generator.integers(0, np.maximum(self._size - 1, 1))
        chosen += (chosen >= self._place) & (self._size > 1)
        return self.prefixes[self._by_target[self._first + chosen]]


class PretrainLoss(nn.Module):
    """Encoder and both losses of stage 1."""

    def __init__(self, encoder: SequenceEncoder, contrastive_weight: float, temperature: float):
        super().__init__()
        self.encoder = encoder
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature

    def forward(self, batch: tuple[Any, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of the batch's B targets.

        Args:
            batch: Packed windows that yield B prefixes and then, if there is contrast, their B partners; and the (B,)
                next items.
        """
        windows, targets = batch
        h = single_or_double(self.encoder(windows))  # (B, D), or (2B, D) with partners
        own, partners = h[: len(targets)], h[len(targets) :]
        loss = full_softmax_loss(own, self.encoder.item_embedding, targets)
        parts = {"recommendation_loss": loss.detach()}
        if self.contrastive_weight:
            all_own, first = gather_rows(own)  # (G, D) of all ranks
            all_partners, _ = gather_rows(partners)
            with torch.autocast(h.device.type, enabled=False):  # a temperature below 1 enlarges rounding errors
                contrast = info_nce_loss(own, partners, self.temperature, all_own, all_partners, first)
            parts["contrastive_loss"] = contrast.detach()
            loss = loss + self.contrastive_weight * contrast
        return loss, parts


class PretrainObjective:
    """Data order, batches and validation of stage 1."""

    choice = "NDCG@10"

    def __init__(
        self,
        sequences: UserSequences,
        settings: PretrainSettings,
        device: torch.device,
        accumulation: int = 1,
        report: ReportProgress = quiet,
    ):
        if accumulation > 1 and settings.contrastive_weight:
            raise InputError(
                f"the launcher's accumulation is {accumulation}, but the contrastive loss compares all prefixes of a "
                "step; set it to 1 and use more processes, a smaller batch_size or contrastive_weight = 0"
            )
        self.prefixes = sequences.prefixes("train")
        if len(self.prefixes) == 0 or len(sequences.evaluated_users()) == 0:
            raise InputError(
                "there is nothing to train on or to validate with, as no user has two training interactions besides a "
                "validation and a test item; use users with four or more interactions"
            )
        torch.manual_seed(settings.seed)
        self.sequences = sequences
        self.settings = settings
        self.device = device
        self.accumulation = accumulation
        self.report = report
        self.encoder = build_encoder(sequences.n_items, settings, DropoutBits(settings.seed)).to(device)
        self.model = PretrainLoss(self.encoder, settings.contrastive_weight, settings.temperature)
        self.windows = self.encoder.windows(sequences, self.prefixes)
        self.pairs = SameNextItem(sequences, self.prefixes)
        self._number = np.full(len(sequences.items), -1)  # position of a prefix -> its index in `prefixes`
        self._number[self.prefixes] = np.arange(len(self.prefixes))
        self._steps: list[IntArray] = []
        self._partners = self.prefixes

    def start_epoch(self, epoch: int) -> int:
        """Shuffle windows into steps of about ``batch_size`` prefixes, and draw a partner for each prefix."""
        generator = np.random.default_rng([self.settings.seed, epoch])
        order = generator.permutation(len(self.windows))
        behind = self.windows.outputs[order].cumsum() - self.windows.outputs[order]
        self._steps = np.split(order, np.flatnonzero(np.diff(behind // self.settings.batch_size)) + 1)
        self._partners = self.pairs.draw(generator)
        self.encoder.bits.seed(self.settings.seed, epoch, rank())
        return len(self._steps)

    def batches(self, first: int = 0) -> Iterator[tuple[list[tuple[Any, Tensor]], int]]:
        """This rank's windows of every step."""
        for step in self._steps[first:]:
            samples = int(self.windows.outputs[step].sum())
            yield [self._piece(rows) for rows in np.array_split(shard(step), self.accumulation)], samples

    def _piece(self, rows: IntArray) -> tuple[Any, Tensor]:
        windows = self.windows.take(rows)
        prefixes = windows.prefixes()
        targets = on_device(torch.from_numpy(self.sequences.next_items(prefixes)), self.device)
        if self.settings.contrastive_weight:
            partners = single_windows(
                self.sequences,
                self._partners[self._number[prefixes]],
                self.settings.max_length,
                self.settings.context_stride,
            )
            windows = Windows.join(windows, partners)
        return self.encoder.pack(self.sequences, windows).to(self.device), targets

    def random_state(self) -> dict[str, Tensor]:
        """Position of the dropout stream."""
        return self.encoder.bits.state()

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self.encoder.bits.restore(state)

    def validate(self) -> dict[str, float]:
        """Full-ranking metrics of the validation targets, unmasked (the paper's protocol) and masked."""
        prefixes = self.sequences.prefixes("valid")
        return validation_metrics(
            self.sequences,
            lambda chosen: self.encoder.encode(
                self.sequences,
                prefixes[chosen],
                report=partial(self.report, stage="pre-training, validation: representations"),
            ),
            self.encoder,
            self.model,
            partial(self.report, stage="pre-training, validation: ranks"),
        )


def validation_metrics(
    sequences: UserSequences,
    represent: Callable[[IntArray], Tensor],
    encoder: SequenceEncoder,
    model: nn.Module,
    report: ReportProgress = quiet,
) -> dict[str, float]:
    """HR, NDCG and MRR of the validation targets, computed by all ranks together.

    Args:
        represent: Maps chosen validation prefixes, by their numbers (U,), to (U, D).
        encoder: Has the item embeddings.
        model: The model in training.
        report: Is told how far the ranking has come.
    """
    every = sequences.prefixes("valid")
    # With ZeRO-3, a forward pass needs all ranks, so all of them go through the same batches.
    alone = is_sharded(model) or world_size() == 1
    chosen = np.arange(len(every)) if alone else shard(np.arange(len(every)))
    prefixes = every[chosen]
    offsets, seen = sequences.seen_before(prefixes)
    queries = represent(chosen)
    with gathered(encoder.item_embedding) as items:
        result = full_ranking(
            queries,
            items.detach(),
            torch.from_numpy(sequences.next_items(prefixes)),
            torch.from_numpy(offsets),
            torch.from_numpy(seen),
            report=report,
        )
    unmasked, masked = (ranks if alone else unshard(ranks, len(every)) for ranks in (result.rank, result.rank_masked))
    figures = {f"masked_{name}": value for name, value in ranking_table(masked, (10,)).items()}
    return {**ranking_table(unmasked, (5, 10, 20)), **figures}


def pretrain(
    sequences: UserSequences,
    settings: PretrainSettings,
    output: Path,
    checkpoint: Path,
    report: ReportProgress,
    engine: EngineSettings | None = None,
) -> dict[str, Any]:
    """Train an encoder; write ``encoder.safetensors``, ``encoder.json`` and ``history.json`` into ``output``."""
    engine = engine or EngineSettings()
    objective = PretrainObjective(sequences, settings, worker_device(), engine.accumulation, report)
    summary = fit(
        objective, settings, stage="pre-training", output=output, checkpoint=checkpoint, report=report, engine=engine
    )
    if rank() == 0:
        save_encoder(objective.encoder, output)
    return summary


class PretrainJob(WorkerJob):
    """Pre-train an encoder on the sequences in a folder."""

    settings: PretrainSettings
    sequences: Path


def work(job: PretrainJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry."""
    keep_freed_memory()
    sequences = UserSequences.load(job.sequences)
    pretrain(sequences, job.settings, place.output, place.checkpoint, reporter.report, place.engine)


if __name__ == "__main__":
    worker_main(PretrainJob, work)
