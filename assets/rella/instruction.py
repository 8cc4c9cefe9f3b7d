"""Group `instruction`: retrieved histories (SUBR), and the samples that tune the adapters (ReiT)."""

from pathlib import Path
from typing import Literal

import dagster as dg
import numpy as np
import pydantic

from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, resolve, takes, upstream
from rarec.config import Settings
from rarec.data.ctr import CtrSamples
from rarec.rella.prompt_source import RECENT, RETRIEVED, load_items, save_retrieved
from rarec.rella.training_samples import ShotSettings, draw_shots, save_variants
from rarec.rella.vectors import VECTORS
from rarec.retrieval.items import ItemIndex
from rarec.retrieval.subr import retrieve_behaviours_by_index
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

RETRIEVAL_VERSION = "1"
SHOTS_VERSION = "1"
SHARED_SAMPLES = 20_000


class RetrievalSettings(Settings):
    """How the K behaviours most similar to the target are found."""

    method: Literal["products", "index"] = pydantic.Field(
        default="products",
        description="Block products of item vectors over each user's history (exact), or the item index, searched "
        "sample by sample (the same answer, slower).",
    )


@takes(RetrievalSettings)
class RetrievalConfig(StageConfig):
    """Run configuration of `retrieval_enhanced_samples`."""


@takes(ShotSettings)
class ShotConfig(StageConfig):
    """Run configuration of `mixed_reit_samples`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "retrieval_enhanced_samples": RetrievalSettings,
    "mixed_reit_samples": ShotSettings,
}


@dg.asset(
    deps=["interactions", "ctr_samples", "textual_samples", "semantic_item_vectors", "item_index"],
    group_name="instruction",
    kinds={"numpy", "faiss"},
    owners=[OWNER],
    code_version=RETRIEVAL_VERSION,
)
@refuse_bad_input
def retrieval_enhanced_samples(
    context: dg.AssetExecutionContext,
    config: RetrievalConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """SUBR: for every sample the K behaviours before the target that are most similar to it, in order of time."""
    settings = resolve(RetrievalSettings, config, folders.spec(context.partition_key), "retrieval_enhanced_samples")
    names = ("interactions", "ctr_samples", "textual_samples", "semantic_item_vectors", "item_index")
    inputs = upstream(context, store, *names)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        samples = CtrSamples.load(inputs["ctr_samples"].path)
        recent = np.load(inputs["textual_samples"].path / RECENT, mmap_mode="r")
        vectors = np.load(inputs["semantic_item_vectors"].path / VECTORS)
        items, k = load_items(inputs["interactions"].path), recent.shape[1]
        if settings.method == "index":
            index = ItemIndex.load(inputs["item_index"].path).index
            np.save(
                folder / RETRIEVED,
                retrieve_behaviours_by_index(index, vectors, items, samples.offsets, samples.position, k),
            )
        else:
            save_retrieved(folder, samples, items, vectors, k)
        retrieved = np.load(folder / RETRIEVED, mmap_mode="r")
        longer = np.flatnonzero(samples.position - samples.history_start > k)
        # Of the samples that leave a choice: how many of the recent behaviours are among the retrieved.
        shown = longer[:: max(1, len(longer) // SHARED_SAMPLES)]
        both = [len(np.intersect1d(recent[sample], retrieved[sample])) / k for sample in shown.tolist()]
        values: dict[str, float | int | str] = {
            "behaviours": k,
            "samples_with_a_choice": len(longer),
            "shared_with_recent": round(float(np.mean(both)), 4) if both else 1.0,
            "method": settings.method,
            "dagster/row_count": len(samples),
        }
        return Outcome(values, metrics={k: v for k, v in values.items() if not isinstance(v, str)})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=RETRIEVAL_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["ctr_samples", "retrieval_enhanced_samples"],
    group_name="instruction",
    kinds={"numpy"},
    owners=[OWNER],
    code_version=SHOTS_VERSION,
)
@refuse_bad_input
def mixed_reit_samples(
    context: dg.AssetExecutionContext,
    config: ShotConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """ReiT: the shots that tune the adapters, each with its recent and its retrieved history, 1:1."""
    settings = resolve(ShotSettings, config, folders.spec(context.partition_key), "mixed_reit_samples")
    inputs = upstream(context, store, "ctr_samples", "retrieval_enhanced_samples")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        samples = CtrSamples.load(inputs["ctr_samples"].path)
        values: dict[str, float | int | str] = {}
        save_variants(settings.variants(), folder)
        for variant in settings.variants():
            shots = draw_shots(samples, settings.shots, variant.mode, variant.seed)
            shots.save(folder / variant.name)
            values |= {
                f"{variant.name} prompts": len(shots),
                f"{variant.name} share of likes": round(float(samples.label[shots.sample].mean()), 4),
            }
        available = samples.rows("train").stop
        values |= {"shots": min(settings.shots, available), "training_samples": available}
        return Outcome(values, metrics={k: v for k, v in values.items() if not isinstance(v, str)})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=SHOTS_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result
