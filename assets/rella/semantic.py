"""Groups `semantic` and `index`: the language model, what it makes of the items, and the index over that."""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd

from assets.data.raw import load_counts, load_table
from assets.framework.checks import RECALL_AT, RECALL_SAMPLE, artifact_check, recall_check
from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    markdown_table,
    materialise,
    refuse_bad_input,
    resolve,
    takes,
    upstream,
)
from assets.framework.training import RETRIES, cancellable, train, training_outcome
from rarec.config import Settings
from rarec.data.spec import DatasetSpec
from rarec.data.templates import Template, find_template
from rarec.errors import InputError
from rarec.rella.language_model import SCRATCH, LanguageModelSettings, ModelReference, fetch, find_answers, hash_of
from rarec.rella.small_llama import load_card
from rarec.rella.vectors import VECTORS, VectorSettings, check_vectors, encode, reduce, sentence_encoder_folder
from rarec.retrieval.index import IndexSettings
from rarec.retrieval.items import ItemIndex
from rarec.text.prompts import CATALOGUE, Catalogue, PromptParts
from rarec.training.engine import worker_device
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

MODEL_VERSION = "2"
VECTOR_VERSION = "2"
INDEX_VERSION = "1"
SHOWN_ITEMS, SHOWN_NEIGHBOURS = 5, 4
# What of the settings concerns a model that is not made here.
FOREIGN = {"source", "max_tokens", "quantisation"}


@takes(LanguageModelSettings)
class ModelConfig(StageConfig):
    """Run configuration of `base_language_model`."""


@takes(VectorSettings)
class VectorConfig(StageConfig):
    """Run configuration of `semantic_item_vectors`."""


@takes(IndexSettings)
class IndexConfig(StageConfig):
    """Run configuration of `item_index`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "base_language_model": LanguageModelSettings,
    "semantic_item_vectors": VectorSettings,
    "item_index": IndexSettings,
}


@dg.asset(
    deps=["interactions", "ctr_samples", "textual_samples"],
    group_name="semantic",
    kinds={"huggingface", "pytorch"},
    owners=[OWNER],
    code_version=MODEL_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def base_language_model(
    context: dg.AssetExecutionContext,
    config: ModelConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """The causal language model that reads the prompts: from a hub, from a folder, or a small one trained here."""
    spec = folders.spec(context.partition_key)
    settings = resolve(LanguageModelSettings, config, spec, "base_language_model")
    template = find_template(spec.domain, spec.template)
    if settings.source != SCRATCH:
        return _foreign_model(context, config, settings, template, store, tracking, folders)
    inputs = upstream(context, store, "interactions", "ctr_samples", "textual_samples")
    files = inputs["textual_samples"].manifest.files
    # Of the text everything but the histories, which depend on K.
    texts = {name: files[name].sha256 for name in (*PromptParts.FILES, CATALOGUE)}

    def build(folder: Path, run: TrackedRun) -> Outcome:
        job = {
            **{name: str(artifact.path) for name, artifact in inputs.items()},
            "settings": settings.model_dump(),
            "has_clock": load_counts(inputs["interactions"])["time"] == "clock",
            "yes": template.yes,
            "no": template.no,
        }
        summary = train(context, launcher, folders, run, "rarec.rella.small_llama", job, folder)
        outcome = training_outcome(run, summary, (), ())
        card = load_card(folder)
        values = {"source": SCRATCH, "what": card["what"], "read": card["read"], "parameters": card["parameters"]}
        metrics = {
            "parameters": card["parameters"],
            "tokens_read": card["tokens_read"],
            "last_loss": card["loss_by_epoch"][-1],
        }
        return Outcome({**values, **outcome.values}, outcome.markdown, {**metrics, **outcome.metrics})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=MODEL_VERSION,
        settings={
            **settings.model_dump(mode="json"),
            **launcher.result_settings(),
            "answers": [template.yes, template.no],
        },
        inputs={"interactions": inputs["interactions"], "ctr_samples": inputs["ctr_samples"], **texts},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


def _foreign_model(
    context: dg.AssetExecutionContext,
    config: StageConfig,
    settings: LanguageModelSettings,
    template: Template,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """A reference to a model of others; its weights stay where they are."""
    place, revision = fetch(settings.source, folders.hub_cache)
    if not any(place.glob("*.safetensors")):
        raise InputError(
            f"{settings.source}: {place} holds no weights (*.safetensors); copy or convert them there, for example "
            "with `save_pretrained` of transformers"
        )
    reference = ModelReference(settings.source, revision, place, settings.quantisation, settings.max_tokens)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        reference.save(folder)
        find_answers(reference.tokenizer(), template.yes, template.no)  # refused now, not after the items are encoded
        weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        values: dict[str, int | str] = {
            "source": settings.source,
            "revision": revision,
            "weight_mib": weights >> 20,
            "longest_prompt": reference.context_length(),
        }
        return Outcome(values, metrics={"weight_mib": weights >> 20})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=MODEL_VERSION,
        settings={**settings.model_dump(mode="json", include=FOREIGN), "answers": [template.yes, template.no]},
        inputs={"model": revision},
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["textual_samples", "base_language_model"],
    group_name="semantic",
    kinds={"pytorch", "scikitlearn"},
    owners=[OWNER],
    code_version=VECTOR_VERSION,
    pool="training",
)
@refuse_bad_input
def semantic_item_vectors(
    context: dg.AssetExecutionContext,
    config: VectorConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """What the language model makes of each item's description: mean hidden state, principal components, length one."""
    settings = resolve(VectorSettings, config, folders.spec(context.partition_key), "semantic_item_vectors")
    inputs = upstream(context, store, "textual_samples", "base_language_model")
    # Of the text only the descriptions count: another wording of prompts or another K gives the same vectors.
    versions = {"catalogue": inputs["textual_samples"].manifest.files[CATALOGUE].sha256}
    if (place := sentence_encoder_folder(settings.encoder)) is not None:
        versions["encoder"] = hash_of(place)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        texts = Catalogue.load(inputs["textual_samples"].path).descriptions
        reference = ModelReference.open(inputs["base_language_model"].path, folders.hub_cache)
        states, cut = encode(reference, texts, worker_device(), settings, folders.hub_cache)
        vectors, explained = reduce(states, settings.dimensions)
        np.save(folder / VECTORS, vectors)
        values = {"items": len(vectors), "dimensions": vectors.shape[1], "explained_variance": round(explained, 4)}
        if cut is not None:
            values["descriptions_cut"] = cut
        return Outcome({**values, "encoder": settings.encoder}, metrics=dict(values))

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=VECTOR_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs={"base_language_model": inputs["base_language_model"], **versions},
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["item_catalog", "textual_samples", "semantic_item_vectors"],
    group_name="index",
    kinds={"faiss"},
    owners=[OWNER],
    code_version=INDEX_VERSION,
)
@refuse_bad_input
def item_index(
    context: dg.AssetExecutionContext,
    config: IndexConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Which items are alike: a Faiss index over the semantic vectors, whose ids are item indices."""
    settings = resolve(IndexSettings, config, folders.spec(context.partition_key), "item_index")
    inputs = upstream(context, store, "item_catalog", "textual_samples", "semantic_item_vectors")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        vectors = np.load(inputs["semantic_item_vectors"].path / VECTORS)
        items = load_table(inputs["item_catalog"], "items")["item_index"].to_numpy()
        index = ItemIndex.build(vectors, items, settings)
        index.save(folder)
        sample = np.random.default_rng(settings.seed).permutation(len(vectors))[:RECALL_SAMPLE]
        recall = 1.0 if settings.index == "flat" else index.recall(vectors, vectors[sample], RECALL_AT)
        values: dict[str, float | int | str] = {
            "items": len(items),
            "index": settings.index,
            f"recall_at_{RECALL_AT}": recall,
            "minimum_recall": settings.minimum_recall,
        }
        names = Catalogue.load(inputs["textual_samples"].path).names
        return Outcome(
            values,
            {"neighbours": markdown_table(_neighbours(index, vectors, names, sample[:SHOWN_ITEMS]))},
            {"items": len(items), f"recall_at_{RECALL_AT}": recall},
        )

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=INDEX_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


def _neighbours(index: ItemIndex, vectors: np.ndarray, names: list[str], shown: np.ndarray) -> pd.DataFrame:
    """A few items and their nearest others, with cosines."""
    found, cosines = index.similar(vectors[shown], SHOWN_NEIGHBOURS + 1)
    rows = []
    for item, others, scores in zip(shown.tolist(), found.tolist(), cosines.tolist(), strict=True):
        near = [
            f"{names[other]} ({score:.2f})"
            for other, score in zip(others, scores, strict=True)
            if other not in (item, -1)
        ]
        near += [""] * SHOWN_NEIGHBOURS  # an approximate index may find fewer
        rows.append([names[item], *near[:SHOWN_NEIGHBOURS]])
    return pd.DataFrame(rows, columns=["item", *(f"{n}." for n in range(1, SHOWN_NEIGHBOURS + 1))])


def _vectors_tell_items_apart(_spec: DatasetSpec, artifact: Artifact) -> tuple[bool, dict[str, int]]:
    return check_vectors(np.load(artifact.path / VECTORS))


CHECKS = [
    artifact_check(
        "vectors",
        "semantic_item_vectors",
        "Vectors are finite, none is zero, and they are not all the same.",
        _vectors_tell_items_apart,
    ),
    recall_check("item_index", "items"),
]
