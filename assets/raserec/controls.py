"""Group `baselines`: stage 2 of RaSeRec with its claimed cause taken away."""

from pathlib import Path

from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.raserec.encoder import FIGURES
from assets.raserec.finetuned import MODEL, finetune_job
from rarec.raserec.settings import Control, ControlSettings, FinetuneSettings
from resources.artifacts.store import Artifact


@stage(
    group="baselines",
    track="raserec",
    version="1",
    settings=ControlSettings,
    inputs=MODEL,
    fingerprints={"encoder": "raserec_pretrained"},
    kinds={"pytorch", "deepspeed"},
    trains=True,
)
def raserec_controls(job: Job[ControlSettings]) -> Outcome:
    """Stage 2 trained again, as it was, but with random memories, or with the query in the place of every memory.

    What such a module gains over stage 1 it owes to its parameters and its training, not to retrieval.
    """
    tuned = job.inputs["raserec_finetuned"].manifest.config
    settings = FinetuneSettings.model_validate({name: tuned[name] for name in FinetuneSettings.model_fields})
    outcome = Outcome({"controls": ", ".join(job.settings.controls) or "none"})
    for control in job.settings.controls:
        own = settings.model_copy(update={"attend_to": control})
        work = finetune_job(own, job.path("user_sequences"), job.inputs["raserec_pretrained"], job.path("memory_bank"))
        told = job.train_one(control, own.model_dump(), work, FIGURES)
        outcome.values |= {f"{control}: validation {name}": told.values[f"validation {name}"] for name in FIGURES}
    return outcome


def control_modules(artifact: Artifact) -> dict[Control, Path]:
    """Control to the folder of its module."""
    return {control: artifact.path / control for control in artifact.manifest.config["controls"]}
