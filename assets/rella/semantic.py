"""Groups `semantic` and `index`: the language model, its item vectors, and the index over them."""

from typing import Any

import numpy as np
import pandas as pd

from assets.data.clean import has_clock, load_table
from assets.framework.checks import RECALL_AT, RECALL_SAMPLE, artifact_check, recall_check
from assets.framework.lineage import upstream
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.stage import Job, Request, stage
from assets.framework.training import training_outcome
from assets.rella.language import answers
from rarec.data.spec import DatasetSpec
from rarec.rella.language_model import SCRATCH, LanguageModelSettings, ModelReference, find_answers
from rarec.rella.model_folder.check import check_form, check_model
from rarec.rella.model_folder.fetching import fetch, hash_of
from rarec.rella.model_folder.weights import weight_files
from rarec.rella.small_llama import SmallLlamaJob, load_card
from rarec.rella.vectors import VECTORS, VectorSettings, check_vectors, encode, reduce, sentence_encoder_folder
from rarec.retrieval.items import ItemIndex
from rarec.retrieval.settings import IndexSettings
from rarec.text.prompts import CATALOGUE, Catalogue, PromptParts
from rarec.training.engine import worker_device
from resources.artifacts.store import Artifact

SHOWN_ITEMS, SHOWN_NEIGHBOURS = 5, 4
# The settings that apply to external models.
FOREIGN = {"source", "max_tokens", "quantisation"}
READING = "2"
"""Raised whenever external models are checked or prompted in another way; small Llamas trained here are not."""


READ = ("interactions", "ctr_samples", "textual_samples")
"""What a model that is trained here reads."""


def _source(request: Request[LanguageModelSettings]) -> ModelReference | dict[str, Artifact]:
    """Inputs of a model trained here, or a reference to an external model, whose weights are not copied."""
    settings = request.settings
    if settings.source == SCRATCH:
        return upstream(request.context, request.store, *READ)
    place, revision = fetch(settings.source, request.workspace.hub_cache)
    check_form(place)  # refused before anything is built
    weight_files(place)
    return ModelReference(settings.source, revision, place, settings.quantisation, settings.max_tokens)


def _model_versions(request: Request[LanguageModelSettings]) -> dict[str, Artifact | str]:
    """The text without the histories, which depend on K; of an external model its revision."""
    source = request.prepared
    if isinstance(source, ModelReference):
        return {"model": f"{source.revision}, reading {READING}"}
    files = source["textual_samples"].manifest.files
    texts = {name: files[name].sha256 for name in (*PromptParts.FILES, CATALOGUE)}
    return {**{name: source[name] for name in ("interactions", "ctr_samples")}, **texts}


def _model_config(request: Request[LanguageModelSettings]) -> dict[str, Any]:
    include = FOREIGN if isinstance(request.prepared, ModelReference) else None
    return {**request.settings.model_dump(mode="json", include=include), **answers(request)}


@stage(
    group="semantic",
    version="2",
    settings=LanguageModelSettings,
    shown=("source", "epochs"),
    after=READ,
    kinds={"huggingface", "pytorch"},
    trains=True,
    precision=lambda request: request.settings.source == SCRATCH,
    prepare=_source,
    versions=_model_versions,
    config=_model_config,
)
def base_language_model(job: Job[LanguageModelSettings]) -> Outcome:
    """The causal language model that reads the prompts: from a hub, from a folder, or a small one trained here."""
    source, yes, no = job.prepared, job.template.yes, job.template.no
    if isinstance(source, ModelReference):
        return _refer(job, source, yes, no)
    paths, clock = {name: artifact.path for name, artifact in source.items()}, has_clock(source["interactions"])
    summary = job.train(SmallLlamaJob(settings=job.settings, **paths, has_clock=clock, yes=yes, no=no))
    outcome = training_outcome(job.run, summary, (), ())
    card = load_card(job.folder)
    values = {"source": SCRATCH, "what": card["what"], "read": card["read"], "parameters": card["parameters"]}
    metrics = {
        "parameters": card["parameters"],
        "tokens_read": card["tokens_read"],
        "last_loss": card["loss_by_epoch"][-1],
    }
    return Outcome({**values, **outcome.values}, outcome.markdown, {**metrics, **outcome.metrics})


def _refer(job: Job[LanguageModelSettings], reference: ModelReference, yes: str, no: str) -> Outcome:
    reference.save(job.folder)
    reader = check_model(reference.folder)  # refused now, not after the items are encoded
    find_answers(reader, yes, no, job.template.question.format(item="item"))
    weights = sum(file.stat().st_size for file in weight_files(reference.folder))
    values: dict[str, int | str] = {
        "source": reference.source,
        "revision": reference.revision,
        "weight_mib": weights >> 20,
        "longest_prompt": reference.context_length(),
    }
    return Outcome(values, metrics={"weight_mib": weights >> 20})


def _vector_versions(request: Request[VectorSettings]) -> dict[str, Artifact | str]:
    """Of the text, only the descriptions: changing K or the wording of prompts does not change the vectors."""
    catalogue = request.inputs["textual_samples"].manifest.files[CATALOGUE].sha256
    place = sentence_encoder_folder(request.settings.encoder)
    return {
        "base_language_model": request.inputs["base_language_model"],
        "catalogue": catalogue,
        **({"encoder": hash_of(place)} if place is not None else {}),
    }


@stage(
    group="semantic",
    version="2",
    settings=VectorSettings,
    shown=("encoder",),
    inputs=("textual_samples", "base_language_model"),
    kinds={"pytorch", "scikitlearn"},
    computes=True,
    versions=_vector_versions,
)
def semantic_item_vectors(job: Job[VectorSettings]) -> Outcome:
    """One vector per item: mean hidden state of its description, reduced to principal components, of unit length."""
    texts = Catalogue.load(job.path("textual_samples")).descriptions
    cache = job.workspace.hub_cache
    reference = ModelReference.open(job.path("base_language_model"), cache)
    states, cut = encode(reference, texts, worker_device(), job.settings, cache)
    vectors, explained = reduce(states, job.settings.dimensions)
    np.save(job.folder / VECTORS, vectors)
    values = {"items": len(vectors), "dimensions": vectors.shape[1], "explained_variance": round(explained, 4)}
    if cut is not None:
        values["descriptions_cut"] = cut
    return Outcome({**values, "encoder": job.settings.encoder}, metrics=dict(values))


@stage(
    group="index",
    version="1",
    settings=IndexSettings,
    inputs=("item_catalog", "textual_samples", "semantic_item_vectors"),
    kinds={"faiss"},
)
def item_index(job: Job[IndexSettings]) -> Outcome:
    """A Faiss index over the semantic item vectors; its ids are item indices."""
    settings = job.settings
    vectors = np.load(job.path("semantic_item_vectors") / VECTORS)
    items = load_table(job.inputs["item_catalog"], "items")["item_index"].to_numpy()
    index = ItemIndex.build(vectors, items, settings)
    index.save(job.folder)
    sample = np.random.default_rng(settings.seed).permutation(len(vectors))[:RECALL_SAMPLE]
    recall = 1.0 if settings.index == "flat" else index.recall(vectors, vectors[sample], RECALL_AT)
    names = Catalogue.load(job.path("textual_samples")).names
    figures = {"items": len(items), f"recall_at_{RECALL_AT}": recall}
    return Outcome(
        {**figures, "index": settings.index, "minimum_recall": settings.minimum_recall},
        {"neighbours": markdown_table(_neighbours(index, vectors, names, sample[:SHOWN_ITEMS]))},
        figures,
    )


def _neighbours(index: ItemIndex, vectors: np.ndarray, names: list[str], shown: np.ndarray) -> pd.DataFrame:
    """A few items and their nearest neighbours, with cosine similarities."""
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
