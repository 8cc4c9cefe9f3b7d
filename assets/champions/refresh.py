"""Group `operations`: RaSeRec's champion, updated with new events."""

from collections.abc import Mapping

import numpy as np

from assets.champions.raserec import served
from assets.data.clean import has_clock, load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from assets.framework.training import training_outcome
from assets.raserec.encoder import FIGURES, SHOWN
from assets.raserec.finetuned import finetune_job, refuse_controls
from rarec.data.sequences import SequenceSettings, UserSequences
from rarec.raserec.settings import FinetuneSettings
from rarec.retrieval.memory import MemoryBank
from resources.artifacts.store import Artifact


def _encoder(request: Request[SequenceSettings] | Request[FinetuneSettings]) -> Artifact:
    return request.champion.artifacts["raserec_pretrained"]


def _memory_versions(request: Request[SequenceSettings]) -> Mapping[str, Artifact | str]:
    return {**request.inputs, **request.champion.inputs, "encoder": _encoder(request).fingerprint}


@stage(
    group="operations",
    track="raserec",
    version="1",
    settings=SequenceSettings,
    shown=("window_days",),
    inputs=("interactions",),
    champion="raserec",
    versions=_memory_versions,
    kinds={"faiss"},
)
def refreshed_memory(job: Job[SequenceSettings]) -> Outcome:
    """The champion's memory bank with all new events. New prefixes are encoded; nothing is trained."""
    model, clock = served(job.champion.artifacts), has_clock(job.inputs["interactions"])
    table = load_table(job.inputs["interactions"], "interactions")
    until = job.settings.window_start(table["timestamp"].to_numpy(), clock)
    if until is not None:
        table = table[table["timestamp"] < until]
    translation = model.translate(table, clock)
    bank = model.refreshed(translation)
    bank.save(job.folder)
    translation.sequences.save(job.folder)
    translation.user_ids.rename("user_id").to_frame().to_parquet(job.folder / "users.parquet", index=False)
    kept = len(model.carried(translation))
    metrics = {
        "memories": len(bank),
        "new memories": len(bank) - kept,
        "no longer valid": len(model.recommender.bank) - kept,
        "unknown items, share of events": float((translation.positions < 0).mean()),
    }
    unseen_since = until or int(table["timestamp"].max()) + 1
    values = {"champion": job.champion.version.number, "unseen_since": unseen_since, **metrics}
    return Outcome(values, metrics=metrics)


@stage(
    group="operations",
    track="raserec",
    version="1",
    settings=FinetuneSettings,
    shown=("epochs", "memories"),
    defaults_of="raserec_finetuned",
    inputs=("refreshed_memory",),
    champion="raserec",
    versions=lambda request: {**request.inputs, "encoder": _encoder(request).fingerprint},
    kinds={"pytorch", "deepspeed"},
    trains=True,
    prepare=refuse_controls,
)
def refreshed_finetuned(job: Job[FinetuneSettings]) -> Outcome:
    """Stage 2, retrained on the champion's frozen encoder and its refreshed memory."""
    # Stage 2 trains only on memories of the training split: no validation or test items.
    memory = job.path("refreshed_memory")
    bank = MemoryBank.load(memory)
    order = np.argsort(bank.prefixes)
    bank.keep(order[np.isin(bank.prefixes[order], UserSequences.load(memory).prefixes("train"))])
    place = job.workdir / "bank"
    place.mkdir(parents=True, exist_ok=True)
    bank.save(place)
    summary = job.train(finetune_job(job.settings, memory, _encoder(job), place))
    outcome = training_outcome(job.run, summary, FIGURES, SHOWN)
    outcome.values["unseen_since"] = job.inputs["refreshed_memory"].metadata["values"]["unseen_since"]
    return outcome
