"""Group `recommender`: stage 2, and the trained model as MLflow serves it."""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import rarec
from assets.data.clean import load_table
from assets.framework.mlflow_models import pinned
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from assets.framework.training import training_outcome
from assets.raserec.encoder import FIGURES, SHOWN
from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.raserec.encoders import ENCODER_FILES
from rarec.raserec.finetune import FinetuneJob
from rarec.raserec.recommender import Recommender
from rarec.raserec.retrieval_module import MODULE_FILES
from rarec.raserec.settings import FinetuneSettings
from rarec.retrieval.memory import BANK_FILES
from resources.artifacts.store import Artifact
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED, TrackedRun

MODEL = ("user_sequences", "raserec_pretrained", "memory_bank", "raserec_finetuned")
"""Artifacts of the trained model."""


def _versions(request: Request[FinetuneSettings]) -> dict[str, Artifact | str]:
    """Only the item ids are part of the model: correcting a title does not retrain it."""
    others = {name: artifact for name, artifact in request.inputs.items() if name != "item_catalog"}
    return {**others, "item_ids": ids_version(request.inputs["item_catalog"])}


def refuse_controls(request: Request[FinetuneSettings]) -> None:
    """Check that the model to serve attends to similar memories.

    Raises:
        InputError: It does not.
    """
    if request.settings.attend_to != "similar":
        raise InputError(
            f"attend_to = {request.settings.attend_to} is a control, not a model to recommend with; "
            f'set "raserec_controls": {{"controls": ["{request.settings.attend_to}"]}} instead'
        )


@stage(
    group="recommender",
    version="3",
    settings=FinetuneSettings,
    shown=("epochs", "learning_rate", "memories", "alpha", "beta", "seed"),
    inputs=("user_sequences", "item_catalog", "raserec_pretrained", "memory_bank"),
    versions=_versions,
    fingerprints={"encoder": "raserec_pretrained"},
    kinds={"pytorch", "deepspeed", "faiss"},
    trains=True,
    prepare=refuse_controls,
)
def raserec_finetuned(job: Job[FinetuneSettings]) -> Outcome:
    """Stage 2: retrieval-augmented module on the frozen encoder; logged to MLflow as a model that recommends items."""
    encoder, bank = job.inputs["raserec_pretrained"], job.path("memory_bank")
    summary = job.train(finetune_job(job.settings, job.path("user_sequences"), encoder, bank))
    outcome = training_outcome(job.run, summary, FIGURES, SHOWN)
    model = log_recommender(job.run, encoder, bank, job.folder, job.inputs["item_catalog"], job.folder)
    outcome.values["mlflow_model"] = model or MODEL_NOT_LOGGED
    return outcome


def finetune_job(settings: FinetuneSettings, sequences: Path, encoder: Artifact, bank: Path) -> FinetuneJob:
    """Stage 2 on this encoder with this memory."""
    return FinetuneJob(
        settings=settings,
        sequences=sequences,
        encoder=encoder.path,
        encoder_fingerprint=encoder.fingerprint,
        bank=bank,
    )


def ids_version(catalog: Artifact) -> str:
    """Hash of the item ids in their order."""
    ids = load_table(catalog, "items")["item_id"]
    return hashlib.sha256("\n".join(map(str, ids.tolist())).encode()).hexdigest()[:32]


def load_recommender(inputs: Mapping[str, Artifact]) -> tuple[UserSequences, Recommender]:
    """The sequences and the trained model that the artifacts of `MODEL` hold."""
    sequences = UserSequences.load(inputs["user_sequences"].path)
    encoder = inputs["raserec_pretrained"]
    bank, module = inputs["memory_bank"].path, inputs["raserec_finetuned"].path
    return sequences, Recommender.load(encoder.path, bank, module, encoder.fingerprint, sequences.n_items)


def log_recommender(
    run: TrackedRun, encoder: Artifact, bank: Path, module: Path, items: Artifact, scratch: Path
) -> str | None:
    """Log the model as an MLflow model; its URI, or None if MLflow is away.

    Only the files that the model reads are logged: a refreshed memory also holds the users' ids and sequences.

    Args:
        scratch: a folder on the store's disk for temporary files.
    """
    from resources.mlflow.pyfunc import raserec as pyfunc  # it imports mlflow, which takes seconds

    read = {
        "encoder": (encoder.path, ENCODER_FILES),
        "bank": (bank, BANK_FILES),
        "module": (module, MODULE_FILES),
        "items": (items.path, ("items.parquet",)),
    }
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folders = {name: Path(place) / name for name in read}
        for name, (source, files) in read.items():
            folders[name].mkdir()
            for file in files:
                _link(source / file, folders[name] / file)
        return run.log_pyfunc(
            "model",
            Path(pyfunc.__file__),
            folders,
            requirements=pinned(
                "torch", "faiss-cpu", "safetensors", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "psutil"
            ),
            code_paths=[str(Path(rarec.__file__).parent)],
            signature=pyfunc.signature(),
            model_config={"encoder_fingerprint": encoder.fingerprint},
        )


def _link(source: Path, target: Path) -> None:
    """A hard link, because a bank may be large; a copy if the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
