"""Retrieved histories, and the samples that tune the adapters."""

import numpy as np
from plant import metadata

from assets.data.clean import load_table
from rarec.data.ctr import CtrSamples
from rarec.rella.prompt_source import RECENT, RETRIEVED
from rarec.rella.training_samples import TrainingSamples, load_variants
from rarec.rella.vectors import VECTORS

TRACK = "rella"


def test_retrieved_behaviours_are_the_most_similar_before_the_target_in_order_of_time(plant, first):
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    items = load_table(plant.artifact(first, "interactions"), "interactions")["item_index"].to_numpy()
    vectors = np.load(plant.artifact(first, "semantic_item_vectors").file(VECTORS)).astype(np.float64)
    retrieved = np.load(plant.artifact(first, "retrieval_enhanced_samples").file(RETRIEVED))
    recent = np.load(plant.artifact(first, "textual_samples").file(RECENT))
    assert retrieved.shape == recent.shape == (len(samples), 8)
    cosine = vectors @ vectors.T
    shared = []
    for sample, (start, target) in enumerate(zip(samples.history_start, samples.position, strict=True)):
        kept = target - retrieved[sample][retrieved[sample] > 0].astype(int)
        assert start <= kept.min() <= kept.max() < target
        assert (np.diff(kept) > 0).all()
        similar = cosine[items[target], items[start:target]]
        assert len(kept) == min(8, len(similar))
        np.testing.assert_allclose(
            np.sort(similar[kept - start]), np.sort(similar)[-len(kept) :], atol=1e-6
        )  # ties may fall either way
        if len(similar) > 8:
            shared.append(len(np.intersect1d(recent[sample], retrieved[sample])) / 8)
    told = metadata(first)["retrieval_enhanced_samples"]
    assert (told["behaviours"], told["samples_with_a_choice"]) == (8, len(shared))
    assert told["shared_with_recent"] == round(np.mean(shared), 4)


def test_mixed_samples_train_with_both_histories_and_recent_ones_with_one(plant, first):
    artifact = plant.artifact(first, "mixed_reit_samples")
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    mixed, recent = (TrainingSamples.load(artifact.path / name) for name in ("mixed-42", "recent-42"))
    assert [one.name for one in load_variants(artifact.path)] == ["mixed-42", "recent-42"]
    assert (len(mixed), len(recent)) == (128, 64)
    assert sorted(mixed.sample[mixed.retrieved]) == sorted(mixed.sample[~mixed.retrieved]) == sorted(recent.sample)
    assert len(set(recent.sample)) == 64
    assert recent.sample.max() < samples.rows("train").stop
    assert not recent.retrieved.any()
    told = metadata(first)["mixed_reit_samples"]
    assert (told["mixed-42 prompts"], told["recent-42 prompts"], told["shots"]) == (128, 64, 64)
    assert told["mixed-42 share of likes"] == round(samples.label[recent.sample].mean(), 4)


def test_no_more_samples_than_there_are(plant, first):
    available = CtrSamples.load(plant.artifact(first, "ctr_samples").path).rows("train").stop
    result = plant.run(track="rella", only=["mixed_reit_samples"], mixed_reit_samples={"shots": 10**6})
    told = metadata(result)["mixed_reit_samples"]
    assert told["shots"] == told["training_samples"] == told["recent-42 prompts"] == available
