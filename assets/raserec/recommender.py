"""Group `recommender`: the RaSeRec track from pre-training to recommendations."""

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

import rarec
from assets.champions.served import MADE_OF, served
from assets.data.raw import load_counts, load_table
from assets.framework.checks import RECALL_AT, RECALL_SAMPLE, recall_check
from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    lineage,
    markdown_table,
    materialise,
    refuse_bad_input,
    resolve,
    takes,
    upstream,
)
from assets.framework.training import RETRIES, cancellable, pinned, train, training_outcome
from rarec.config import Settings
from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.raserec.encoders import ENCODER_FILES, load_encoder
from rarec.raserec.recommender import Recommender, recommend_users
from rarec.raserec.retrieval_module import MODULE_FILES
from rarec.raserec.settings import FinetuneSettings, MemorySettings, PretrainSettings
from rarec.retrieval.memory import BANK_FILES, MemoryBank, Queries
from rarec.training.engine import worker_device
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED, TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

PRETRAIN_VERSION = "2"
MEMORY_VERSION = "3"
FINETUNE_VERSION = "3"
RECOMMEND_VERSION = "4"
VALIDATION_FIGURES = ("HR@10", "NDCG@10")
VALIDATION_SHOWN = ("HR@10", "NDCG@10", "masked_HR@10", "masked_NDCG@10")


class RecommendSettings(Settings):
    """Settings of the recommendation lists."""

    top_n: int = pydantic.Field(default=20, ge=1, description="Items a user.")
    exclude_seen: bool = pydantic.Field(default=True, description="Leave out what the user already has.")


@takes(PretrainSettings)
class PretrainConfig(StageConfig):
    """Run configuration of `raserec_pretrained`."""


@takes(MemorySettings)
class MemoryConfig(StageConfig):
    """Run configuration of `memory_bank`."""


@takes(FinetuneSettings)
class FinetuneConfig(StageConfig):
    """Run configuration of `raserec_finetuned`."""


@takes(RecommendSettings)
class RecommendConfig(StageConfig):
    """Run configuration of `recommendations`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "raserec_pretrained": PretrainSettings,
    "memory_bank": MemorySettings,
    "raserec_finetuned": FinetuneSettings,
    "recommendations": RecommendSettings,
}


@dg.asset(
    deps=["user_sequences"],
    group_name="recommender",
    kinds={"pytorch", "deepspeed"},
    owners=[OWNER],
    code_version=PRETRAIN_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def raserec_pretrained(
    context: dg.AssetExecutionContext,
    config: PretrainConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """Stage 1: sequence encoder, trained to recommend and to retrieve; chosen on validation NDCG@10."""
    settings = resolve(PretrainSettings, config, folders.spec(context.partition_key), "raserec_pretrained")
    inputs = upstream(context, store, "user_sequences")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        job = {
            "settings": settings.model_dump(),
            "sequences": str(inputs["user_sequences"].path),
        }
        summary = train(context, launcher, folders, run, "rarec.raserec.pretrain", job, folder)
        return training_outcome(run, summary, VALIDATION_FIGURES, VALIDATION_SHOWN)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=PRETRAIN_VERSION,
        settings={**settings.model_dump(mode="json"), **launcher.result_settings()},
        inputs=inputs,
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


@dg.asset(
    deps=["user_sequences", "raserec_pretrained"],
    group_name="recommender",
    kinds={"faiss"},
    owners=[OWNER],
    code_version=MEMORY_VERSION,
)
@refuse_bad_input
def memory_bank(
    context: dg.AssetExecutionContext,
    config: MemoryConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Every training prefix's representation and its next item, searchable; it carries the encoder's fingerprint."""
    settings = resolve(MemorySettings, config, folders.spec(context.partition_key), "memory_bank")
    inputs = upstream(context, store, "user_sequences", "raserec_pretrained")
    if settings.time_cut and inputs["user_sequences"].metadata["values"]["time"] != "clock":
        raise InputError(
            f"time_cut needs clock timestamps, which {context.partition_key} has not; set time_cut = false"
        )

    def build(folder: Path, run: TrackedRun) -> Outcome:
        sequences = UserSequences.load(inputs["user_sequences"].path)
        encoder = load_encoder(inputs["raserec_pretrained"].path, sequences.n_items).to(worker_device())
        prefixes = sequences.prefixes("train")
        representations = encoder.encode(sequences, prefixes).cpu().numpy()
        bank = MemoryBank.build(
            sequences, prefixes, representations, inputs["raserec_pretrained"].fingerprint, settings
        )
        bank.save(folder)
        values: dict[str, float | int | str] = {
            "memories": len(bank),
            "index": settings.index,
            "time_cut": settings.time_cut,
            "minimum_recall": settings.minimum_recall,
            "encoder": bank.encoder,
        }
        sample = np.random.default_rng(settings.seed).permutation(len(bank))[:RECALL_SAMPLE]
        queries = Queries.of(sequences, prefixes[sample], representations[sample])
        recall = 1.0 if settings.index == "flat" else bank.recall(queries, min(RECALL_AT, len(bank)))
        values[f"recall_at_{RECALL_AT}"] = recall
        return Outcome(values, metrics={"memories": len(bank), f"recall_at_{RECALL_AT}": recall})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=MEMORY_VERSION,
        settings=settings.model_dump(mode="json"),
        # The bank answers for one encoder: its identity, not only its content, is part of the bank's.
        inputs={**inputs, "encoder": inputs["raserec_pretrained"].fingerprint},
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["user_sequences", "item_catalog", "raserec_pretrained", "memory_bank"],
    group_name="recommender",
    kinds={"pytorch", "deepspeed", "faiss"},
    owners=[OWNER],
    code_version=FINETUNE_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def raserec_finetuned(
    context: dg.AssetExecutionContext,
    config: FinetuneConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """Stage 2: retrieval-augmented module on the frozen encoder; logged to MLflow as a model that recommends items."""
    settings = resolve(FinetuneSettings, config, folders.spec(context.partition_key), "raserec_finetuned")
    inputs = upstream(context, store, "user_sequences", "item_catalog", "raserec_pretrained", "memory_bank")
    encoder, bank = inputs["raserec_pretrained"], inputs["memory_bank"]

    def build(folder: Path, run: TrackedRun) -> Outcome:
        job = finetune_job(settings, inputs["user_sequences"].path, encoder, bank.path)
        summary = train(context, launcher, folders, run, "rarec.raserec.finetune", job, folder)
        outcome = training_outcome(run, summary, VALIDATION_FIGURES, VALIDATION_SHOWN)
        model = log_recommender(run, encoder, bank.path, folder, inputs["item_catalog"], folder)
        outcome.values["mlflow_model"] = model or MODEL_NOT_LOGGED
        return outcome

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=FINETUNE_VERSION,
        settings={**settings.model_dump(mode="json"), **launcher.result_settings()},
        # Of the catalogue only the ids go into the model: a corrected title is no reason to train again.
        inputs={
            **{name: artifact for name, artifact in inputs.items() if name != "item_catalog"},
            "item_ids": _ids_version(inputs["item_catalog"]),
            "encoder": encoder.fingerprint,
        },
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


@dg.asset(
    deps=["interactions", *MADE_OF, "raserec_champion"],
    group_name="recommender",
    kinds={"parquet"},
    owners=[OWNER],
    code_version=RECOMMEND_VERSION,
)
@refuse_bad_input
def recommendations(
    context: dg.AssetExecutionContext,
    config: RecommendConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """The best items for every user, by the champion from all interactions, or where there is none yet by the present
    model from its sequences: one row a user and rank, with score and title.

    Users of whom the model knows nothing get the most popular of its items, without score: `chosen_by` is popularity.
    """
    settings = resolve(RecommendSettings, config, folders.spec(context.partition_key), "recommendations")
    champion = tracking.registry("raserec", context.partition_key).champion()
    if champion is None:
        inputs = made_of = lineage(context, store, "raserec_finetuned", *MADE_OF)
    else:
        made_of = champion.open(store, context.partition_key)
        inputs = {**made_of, **upstream(context, store, "interactions")}

    def build(folder: Path, run: TrackedRun) -> Outcome:
        sequences, recommender, user_ids = _at_work(inputs, champion is None)
        lists = recommend_users(recommender, sequences, settings.top_n, settings.exclude_seen)
        user, place = np.nonzero(lists.items >= 0)
        items = load_table(made_of["item_catalog"], "items")
        chosen = lists.items[user, place]
        table = pd.DataFrame(
            {
                "user_id": user_ids.take(user).array,
                "rank": (place + 1).astype(np.int32),
                "item_id": items["item_id"].take(chosen).array,
                "title": items["title"].take(chosen).array,
                "score": lists.scores[user, place],
                "chosen_by": np.where(lists.by_popularity[user], "popularity", "model"),
            }
        )
        table.to_parquet(folder / "recommendations.parquet", index=False)
        model = "the present raserec_finetuned" if champion is None else f"champion, version {champion.number}"
        figures: dict[str, float] = {
            "users": sequences.n_users,
            "users_by_popularity": int(lists.by_popularity.sum()),
            "rows": len(table),
        }
        values = {"model": model, **figures, "dagster/row_count": len(table)}
        return Outcome(values, {"preview": markdown_table(table.head(10))}, figures)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=RECOMMEND_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


def finetune_job(settings: FinetuneSettings, sequences: Path, encoder: Artifact, bank: Path) -> dict[str, Any]:
    """What the worker `rarec.raserec.finetune` reads."""
    return {
        "settings": settings.model_dump(),
        "sequences": str(sequences),
        "encoder": str(encoder.path),
        "encoder_fingerprint": encoder.fingerprint,
        "bank": str(bank),
    }


def log_recommender(
    run: TrackedRun, encoder: Artifact, bank: Path, module: Path, items: Artifact, scratch: Path
) -> str | None:
    """Log the model as an MLflow model; its URI, or None if MLflow is away.

    Of the folders only what the model reads goes along: a refreshed memory also holds the users' ids and sequences.

    Args:
        scratch: a folder on the store's disk, which is left as it was.
    """
    from resources.mlflow.pyfunc import raserec as raserec_pyfunc  # it imports mlflow, which takes seconds

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
            Path(raserec_pyfunc.__file__),
            folders,
            requirements=pinned(
                "torch", "faiss-cpu", "safetensors", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "psutil"
            ),
            code_paths=[str(Path(rarec.__file__).parent)],
            signature=raserec_pyfunc.signature(),
            model_config={"encoder_fingerprint": encoder.fingerprint},
        )


def _link(source: Path, target: Path) -> None:
    """The same file under another name, as a bank may be large; a copy where the disk knows no such thing."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _at_work(inputs: dict[str, Artifact], untested: bool) -> tuple[UserSequences, Recommender, pd.Series]:
    """Everybody's sequences, the model with its memory, and the users' ids; ``untested``: no champion yet."""
    if untested:
        sequences, recommender = load_recommender(inputs)
        for split in ("valid", "test"):
            recommender.remember(sequences, sequences.prefixes(split))
        return sequences, recommender, load_table(inputs["user_profiles"], "users")["user_id"]
    model = served(inputs)
    interactions = inputs["interactions"]
    clock = load_counts(interactions)["time"] == "clock"
    translation = model.translate(load_table(interactions, "interactions"), clock)
    recommender = replace(model.recommender, bank=model.carried(translation))
    return translation.sequences, recommender, translation.user_ids


def load_recommender(inputs: dict[str, Artifact]) -> tuple[UserSequences, Recommender]:
    """The sequences and the trained model that these artifacts hold."""
    sequences = UserSequences.load(inputs["user_sequences"].path)
    encoder = inputs["raserec_pretrained"]
    recommender = Recommender.load(
        encoder.path,
        inputs["memory_bank"].path,
        inputs["raserec_finetuned"].path,
        encoder.fingerprint,
        sequences.n_items,
    )
    return sequences, recommender


def _ids_version(catalog: Artifact) -> str:
    """Hash of the item ids in their order."""
    ids = load_table(catalog, "items")["item_id"]
    return hashlib.sha256("\n".join(map(str, ids.tolist())).encode()).hexdigest()[:32]


CHECKS = [recall_check("memory_bank", "memories", also=("memories",))]
