"""Group `recommender`: the sequence encoder, and the memory bank of what it encodes."""

import numpy as np

from assets.framework.checks import RECALL_AT, RECALL_SAMPLE, recall_check
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from assets.framework.training import training_outcome
from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.raserec.encoders import load_encoder
from rarec.raserec.pretrain import PretrainJob
from rarec.raserec.settings import PretrainSettings
from rarec.retrieval.memory import MemoryBank, Queries
from rarec.retrieval.settings import MemorySettings
from rarec.training.engine import worker_device

FIGURES = ("HR@10", "NDCG@10")
SHOWN = ("HR@10", "NDCG@10", "masked_HR@10", "masked_NDCG@10")


@stage(
    group="recommender",
    version="2",
    settings=PretrainSettings,
    shown=("epochs", "learning_rate", "dim", "seed"),
    inputs=("user_sequences",),
    kinds={"pytorch", "deepspeed"},
    trains=True,
)
def raserec_pretrained(job: Job[PretrainSettings]) -> Outcome:
    """Stage 1: sequence encoder, trained to recommend and to retrieve; chosen on validation NDCG@10."""
    summary = job.train(PretrainJob(settings=job.settings, sequences=job.path("user_sequences")))
    return training_outcome(job.run, summary, FIGURES, SHOWN)


def _require_clock(request: Request[MemorySettings]) -> None:
    if request.settings.time_cut and request.inputs["user_sequences"].metadata["values"]["time"] != "clock":
        raise InputError(f"time_cut needs clock timestamps, and {request.dataset} has none; set time_cut = false")


@stage(
    group="recommender",
    version="3",
    settings=MemorySettings,
    shown=("index",),
    inputs=("user_sequences", "raserec_pretrained"),
    fingerprints={"encoder": "raserec_pretrained"},
    kinds={"faiss"},
    prepare=_require_clock,
)
def memory_bank(job: Job[MemorySettings]) -> Outcome:
    """Every training prefix's representation and its next item, searchable; it carries the encoder's fingerprint."""
    settings, owner = job.settings, job.inputs["raserec_pretrained"]
    sequences = UserSequences.load(job.path("user_sequences"))
    encoder = load_encoder(owner.path, sequences.n_items).to(worker_device())
    prefixes = sequences.prefixes("train")
    representations = encoder.encode(sequences, prefixes).cpu().numpy()
    bank = MemoryBank.build(sequences, prefixes, representations, owner.fingerprint, settings)
    bank.save(job.folder)
    sample = np.random.default_rng(settings.seed).permutation(len(bank))[:RECALL_SAMPLE]
    queries = Queries.of(sequences, prefixes[sample], representations[sample])
    recall = 1.0 if settings.index == "flat" else bank.recall(queries, min(RECALL_AT, len(bank)))
    figures = {"memories": len(bank), f"recall_at_{RECALL_AT}": recall}
    shown = {"index": settings.index, "time_cut": settings.time_cut, "minimum_recall": settings.minimum_recall}
    return Outcome({**figures, **shown, "encoder": bank.encoder}, metrics=figures)


CHECKS = [recall_check("memory_bank", "memories", also=("memories",))]
