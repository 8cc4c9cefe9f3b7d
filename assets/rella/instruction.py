"""Group `instruction`: retrieved histories (SUBR), and the samples that tune the adapters (ReiT)."""

import numpy as np

from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from rarec.config import Settings
from rarec.data.ctr import CtrSamples
from rarec.rella.prompt_source import RECENT, load_items, save_retrieved
from rarec.rella.training_samples import TrainingSampleSettings, draw_training_samples, save_variants
from rarec.rella.vectors import VECTORS

SHARED_SAMPLES = 20_000


@stage(
    group="instruction",
    version="1",
    # `method` was once a setting, which could read the index; artifacts made then are still valid.
    inputs=("interactions", "ctr_samples", "textual_samples", "semantic_item_vectors", "item_index"),
    kinds={"numpy", "faiss"},
    config=lambda _request: {"method": "products"},
)
def retrieval_enhanced_samples(job: Job[Settings]) -> Outcome:
    """SUBR: for every sample the K behaviours before the target that are most similar to it, in order of time."""
    samples = CtrSamples.load(job.path("ctr_samples"))
    recent = np.load(job.path("textual_samples") / RECENT, mmap_mode="r")
    vectors = np.load(job.path("semantic_item_vectors") / VECTORS)
    k = recent.shape[1]
    retrieved = save_retrieved(job.folder, samples, load_items(job.path("interactions")), vectors, k)
    longer = np.flatnonzero(samples.position - samples.history_start > k)
    # Among samples with more than K behaviours: the share of recent behaviours that are also retrieved.
    shown = longer[:: max(1, len(longer) // SHARED_SAMPLES)]
    both = [len(np.intersect1d(recent[sample], retrieved[sample])) / k for sample in shown.tolist()]
    figures = {
        "behaviours": k,
        "samples_with_a_choice": len(longer),
        "shared_with_recent": round(float(np.mean(both)), 4) if both else 1.0,
        "dagster/row_count": len(samples),
    }
    return Outcome(dict(figures), metrics=figures)


@stage(
    group="instruction",
    version="1",
    settings=TrainingSampleSettings,
    shown=("shots", "modes", "seeds"),
    inputs=("ctr_samples", "retrieval_enhanced_samples"),
    kinds={"numpy"},
)
def mixed_reit_samples(job: Job[TrainingSampleSettings]) -> Outcome:
    """ReiT: the samples that tune the adapters, each with its recent and its retrieved history, 1:1."""
    samples, settings = CtrSamples.load(job.path("ctr_samples")), job.settings
    values: dict[str, float | int] = {}
    save_variants(settings.variants(), job.folder)
    for variant in settings.variants():
        drawn = draw_training_samples(samples, settings.shots, variant.mode, variant.seed)
        drawn.save(job.folder / variant.name)
        values |= {
            f"{variant.name} prompts": len(drawn),
            f"{variant.name} share of likes": round(float(samples.label[drawn.sample].mean()), 4),
        }
    available = samples.rows("train").stop
    values |= {"shots": min(settings.shots, available), "training_samples": available}
    return Outcome(dict(values), metrics=dict(values))
