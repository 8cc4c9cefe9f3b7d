"""Samples of the click-through task and the text of their prompts."""

from types import SimpleNamespace

import numpy as np
import pytest
from plant import built, failures, metadata

from assets.data.clean import load_table
from assets.rella.text import _no_leak
from rarec.data.ctr import CtrSamples
from rarec.rella.prompt_source import RECENT
from rarec.text.prompts import PromptParts

TRACK = "rella"


def test_another_k_keeps_the_language_model_and_the_vectors(plant, first):
    wanted = ["textual_samples", "base_language_model", "semantic_item_vectors"]
    result = plant.run(track="rella", only=wanted, textual_samples={"behaviours": 7})
    assert result.success, failures(result)
    assert built(result) == {"textual_samples"}
    plant.run(track="rella", only=wanted)  # as it was, for the tests below


def test_samples_are_the_interactions_with_enough_history_split_by_time(plant, first):
    table = load_table(plant.artifact(first, "interactions"), "interactions")
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    place = table.groupby("user_index").cumcount().to_numpy()
    assert sorted(samples.position) == np.flatnonzero(place >= 5).tolist()
    assert samples.label.tolist() == (table["rating"].to_numpy()[samples.position] > 3).tolist()
    told, times = metadata(first)["ctr_samples"], table["timestamp"].to_numpy()[samples.position]
    train, valid, test = (samples.rows(split) for split in ("train", "valid", "test"))
    assert [told[f"{split} samples"] for split in ("train", "valid", "test")] == [
        train.stop, valid.stop - valid.start, test.stop - test.start
    ]  # fmt: skip
    assert times[train].max() <= times[valid].min() <= times[valid].max() <= times[test].min()
    assert told["test share of likes"] == round(samples.label[test].mean(), 4)
    assert (told["repeated targets"], told["out_of_order targets"], told["split_by"]) == (0, 0, "global time")


def test_a_prompt_names_the_latest_behaviours_before_its_target_and_asks_for_it(plant, first):
    table = load_table(plant.artifact(first, "interactions"), "interactions")
    titles = load_table(plant.artifact(first, "item_catalog"), "items")["title"]
    samples = CtrSamples.load(plant.artifact(first, "ctr_samples").path)
    folder = plant.artifact(first, "textual_samples").path
    parts, recent = PromptParts.load(folder), np.load(folder / RECENT)
    sample = len(samples) - 1
    position = samples.position[[sample]]
    items = table["item_index"].to_numpy()
    text = parts.text(parts.of(samples.user[[sample]], items[position], position, recent[[sample]])[0])
    before = range(max(samples.history_start[sample], position[0] - 8), position[0])
    named = [titles[items[row]] for row in before]
    assert len(named) == 8
    places = [text.index(title) for title in (*named, titles[items[position[0]]])]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("repeated", "out_of_order", "passes"), [(0, 0, True), (1, 0, False), (0, 1, False)]
)  # fmt: skip
def test_targets_in_two_splits_or_out_of_order_fail_the_check(repeated, out_of_order, passes):
    values = {"repeated targets": repeated, "out_of_order targets": out_of_order}
    artifact = SimpleNamespace(metadata={"values": values})
    assert _no_leak(None, artifact) == (passes, {"repeated": repeated, "out_of_order": out_of_order})
