"""Stage 2 of RaSeRec: retrieval-augmented fine-tuning (section 3.4).

The encoder and the item embeddings are frozen and run without dropout. So queries, neighbour lists and memories are
constants: they are computed once, and an epoch trains only the retrieval-augmented module.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.raserec.encoders import SequenceEncoder, load_encoder
from rarec.raserec.pretrain import validation_metrics
from rarec.raserec.retrieval_module import RetrievalAugmentedModule, save_module
from rarec.raserec.settings import FinetuneSettings
from rarec.retrieval.memory import MemoryBank, Queries
from rarec.training.device import on_device
from rarec.training.dropout import DropoutBits
from rarec.training.engine import keep_freed_memory, rank, shard, worker_device
from rarec.training.engine_settings import EngineSettings
from rarec.training.fit import fit
from rarec.training.job import Place, WorkerJob
from rarec.training.progress import ProgressReporter, ReportProgress, quiet, worker_main
from rarec.training.softmax import full_softmax_loss
from rarec.types import IntArray


@dataclass(frozen=True)
class Neighbours:
    """Memory ids of both channels for Q queries: (Q, K) int64, -1 if there are fewer; None for an unused channel."""

    users: Tensor | None
    items: Tensor | None

    def __getitem__(self, rows: Tensor) -> "Neighbours":
        return Neighbours(
            None if self.users is None else self.users[rows], None if self.items is None else self.items[rows]
        )

    def to(self, device: torch.device) -> "Neighbours":
        """The same ids on ``device``."""
        users = None if self.users is None else self.users.to(device)
        return Neighbours(users, None if self.items is None else self.items.to(device))


def find_neighbours(
    bank: MemoryBank,
    queries: Queries,
    item_embeddings: np.ndarray,
    settings: FinetuneSettings,
    report: ReportProgress = quiet,
    whose: str = "",
) -> Neighbours:
    """Search the bank for the channels that ``settings`` use, or do what they say instead.

    Args:
        item_embeddings: (I, D).
        report: Is told of the search, as neighbour lists of ``whose`` queries.
    """
    users = items = ids = None
    if settings.attend_to == "random":
        ids = torch.from_numpy(bank.drawn(queries, settings.memories, settings.seed))
    elif settings.attend_to == "itself":  # which memory is meant does not matter
        ids = torch.zeros(len(queries), settings.memories, dtype=torch.int64)
    if ids is not None:
        return Neighbours(ids if settings.beta > 0 else None, ids if settings.beta < 1 else None)
    if settings.beta > 0:
        told = partial(report, stage=f"{whose} neighbour lists: similar users")
        users = torch.from_numpy(bank.similar_users(queries, settings.memories, told))
    if settings.beta < 1:
        told = partial(report, stage=f"{whose} neighbour lists: suitable items")
        items = torch.from_numpy(bank.suitable_items(queries, item_embeddings, settings.memories, told))
    return Neighbours(users, items)


class Memories(nn.Module):
    """Both halves of a bank as tensors: representations (N, D), and embeddings of the next items (N, D)."""

    def __init__(self, bank: MemoryBank, item_embeddings: Tensor):
        super().__init__()
        device = item_embeddings.device
        self.representations = torch.from_numpy(bank.representations).to(device)
        self.next_items = item_embeddings[torch.from_numpy(bank.targets).to(device)]


class FinetuneLoss(nn.Module):
    """The module and its cross-entropy against all items."""

    def __init__(self, module: RetrievalAugmentedModule, memories: Memories, item_embeddings: Tensor):
        super().__init__()
        self.module = module
        self._constants = (memories, item_embeddings)  # a tuple keeps them from being trained and saved

    def forward(self, batch: tuple[Tensor, Neighbours, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a batch: B queries (B, D), their neighbours, and their next items (B,)."""
        queries, neighbours, targets = batch
        memories, items = self._constants
        h = self.module(queries, memories.representations, memories.next_items, neighbours.users, neighbours.items)
        return full_softmax_loss(h, items, targets), {}


class FinetuneObjective:
    """Constants, batches and validation of stage 2."""

    choice = "NDCG@10"

    def __init__(
        self,
        sequences: UserSequences,
        encoder: SequenceEncoder,
        bank: MemoryBank,
        settings: FinetuneSettings,
        device: torch.device,
        report: ReportProgress,
        accumulation: int = 1,
    ):
        if not np.array_equal(bank.prefixes, sequences.prefixes("train")):
            raise InputError(
                "the memory bank does not hold exactly the training prefixes of these sequences, so stage 2 could "
                "train on validation or test items; materialise `memory_bank` again"
            )
        torch.manual_seed(settings.seed)
        self.sequences = sequences
        self.settings = settings
        self.device = device
        self.accumulation = accumulation
        self.report = report
        self.encoder = encoder.to(device).eval()
        self.items = self.encoder.item_embedding.detach()
        self.bits = DropoutBits(settings.seed)
        module = RetrievalAugmentedModule(self.items.shape[1], settings, self.bits)
        self.memories = Memories(bank, self.items)
        self.model = FinetuneLoss(module.to(device), self.memories, self.items)
        embeddings = self.items.cpu().numpy()

        # The memories are the training prefixes, so their representations are also the queries.
        self.targets = torch.from_numpy(bank.targets).to(device)
        self.queries = self.memories.representations
        own = Queries.of(sequences, bank.prefixes, bank.representations)
        self.neighbours = find_neighbours(bank, own, embeddings, settings, report, "training").to(device)
        valid = sequences.prefixes("valid")
        self.valid_queries = encoder.encode(
            sequences, valid, report=partial(report, stage="representations of the validation queries")
        )
        asked = Queries.of(sequences, valid, self.valid_queries.cpu().numpy())
        self.valid_neighbours = find_neighbours(bank, asked, embeddings, settings, report, "validation").to(device)
        self._steps: list[IntArray] = []

    def start_epoch(self, epoch: int) -> int:
        """Shuffle the training prefixes into steps."""
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.targets))
        self._steps = np.split(order, range(self.settings.batch_size, len(order), self.settings.batch_size))
        self.bits.seed(self.settings.seed, epoch, rank())
        return len(self._steps)

    def batches(self, first: int = 0) -> Iterator[tuple[list[tuple[Tensor, Neighbours, Tensor]], int]]:
        """This rank's part of every step."""
        for step in self._steps[first:]:
            parts = np.array_split(shard(step), self.accumulation)
            pieces = [on_device(torch.from_numpy(part), self.device) for part in parts]
            yield [(self.queries[rows], self.neighbours[rows], self.targets[rows]) for rows in pieces], len(step)

    def random_state(self) -> dict[str, Tensor]:
        """Position of the dropout stream."""
        return self.bits.state()

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self.bits.restore(state)

    def validate(self) -> dict[str, float]:
        """Full-ranking metrics of the validation targets."""
        report = partial(self.report, stage="fine-tuning, validation: ranks")
        return validation_metrics(self.sequences, self._augment_valid, self.encoder, self.model, report)

    @torch.no_grad()
    def _augment_valid(self, chosen: IntArray) -> Tensor:
        rows = torch.from_numpy(chosen).to(self.device)
        return augment(self.model.module, self.valid_queries[rows], self.valid_neighbours[rows], self.memories)


@torch.no_grad()
def augment(
    module: RetrievalAugmentedModule, queries: Tensor, neighbours: Neighbours, memories: Memories, batch: int = 4096
) -> Tensor:
    """(Q, D) augmented representations without dropout."""
    was_training = module.training
    module.eval()
    parts = []
    for start in range(0, len(queries), batch):
        rows = torch.arange(start, min(start + batch, len(queries)), device=queries.device)
        part = neighbours[rows]
        parts.append(module(queries[rows], memories.representations, memories.next_items, part.users, part.items))
    module.train(was_training)
    return torch.cat(parts)


def finetune(
    sequences: UserSequences,
    encoder: SequenceEncoder,
    bank: MemoryBank,
    settings: FinetuneSettings,
    output: Path,
    checkpoint: Path,
    report: ReportProgress,
    engine: EngineSettings | None = None,
) -> dict[str, Any]:
    """Train the module on a frozen encoder; write ``module.safetensors``, ``module.json``, ``history.json``."""
    engine = engine or EngineSettings()
    objective = FinetuneObjective(sequences, encoder, bank, settings, worker_device(), report, engine.accumulation)
    summary = fit(
        objective, settings, stage="fine-tuning", output=output, checkpoint=checkpoint, report=report, engine=engine
    )
    if rank() == 0:
        save_module(objective.model.module, objective.items.shape[1], bank.encoder, output)
    return summary


class FinetuneJob(WorkerJob):
    """Train the retrieval-augmented module for a pre-trained encoder and its memory bank."""

    settings: FinetuneSettings
    sequences: Path
    encoder: Path
    encoder_fingerprint: str
    bank: Path


def work(job: FinetuneJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry."""
    keep_freed_memory()
    sequences = UserSequences.load(job.sequences)
    bank = MemoryBank.load(job.bank)
    bank.require_encoder(job.encoder_fingerprint)
    encoder = load_encoder(job.encoder, sequences.n_items)
    finetune(sequences, encoder, bank, job.settings, place.output, place.checkpoint, reporter.report, place.engine)


if __name__ == "__main__":
    worker_main(FinetuneJob, work)
