"""What takes arrays and tables gives them back as they were; and the proof of that would show if it did not."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from callers_data import unchanged
from raserec_toys import random_sequences

from rarec.baselines.ranking import ItemNeighbours, rank_by_popularity
from rarec.champions.promotion import CandidateSettings, compare_answers
from rarec.champions.window import choose_window, item_distances, shift_of_items
from rarec.data.ctr import CtrSettings, build_ctr_samples
from rarec.data.raw import RawTables
from rarec.data.sequences import build_sequences
from rarec.data.spec import builtin_specs
from rarec.data.tables import build_tables
from rarec.metrics.ctr import ctr_metrics
from rarec.metrics.groups import metrics_by_group, popularity_groups
from rarec.metrics.histories import genre_matrix
from rarec.metrics.significance import compare_paired
from rarec.retrieval.subr import retrieve_behaviours

RNG = np.random.default_rng(0)
USERS = np.repeat(np.arange(12), 9)
ITEMS = RNG.integers(0, 14, len(USERS))
TIMES = RNG.permutation(len(USERS))
LIKED = RNG.random(len(USERS)) < 0.5
SCORES = RNG.random(len(USERS))
VECTORS = RNG.normal(size=(14, 6)).astype(np.float32)
TABLE = pd.DataFrame(
    {"user_index": USERS, "item_index": ITEMS, "user_id": USERS, "item_id": ITEMS, "timestamp": np.sort(TIMES)}
)
RAW = RawTables.of(
    pd.DataFrame({"user_id": USERS, "item_id": ITEMS, "rating": 4.0, "timestamp": TIMES}).drop_duplicates(
        ["user_id", "item_id"]
    ),
    None,
    pd.DataFrame({"user_id": range(12), "gender": ["F", None] * 6}),
    pd.DataFrame(columns=["file", "line", "reason", "text"]),
    [],
)
SEQUENCES = random_sequences([9, 7, 3, 12, 5], n_items=14)
SAMPLES = build_ctr_samples(USERS, np.sort(TIMES), LIKED, 12, "clock", CtrSettings(minimum_history=2))
DEMO = builtin_specs()["demo"]
PREFIXES = SEQUENCES.prefixes("test")

CALLS = {
    "tables": (build_tables, DEMO, RAW),
    "sequences": (build_sequences, USERS, ITEMS, np.sort(TIMES), 12, 14, "error", pd.Series(range(12))),
    "samples": (build_ctr_samples, USERS, np.sort(TIMES), LIKED, 12, "clock", CtrSettings(minimum_history=2)),
    "retrieved": (retrieve_behaviours, VECTORS, ITEMS, SAMPLES.offsets, SAMPLES.position, 3),
    "neighbours": (ItemNeighbours.of, SEQUENCES, 4),
    "popularity": (rank_by_popularity, SEQUENCES, PREFIXES),
    "click figures": (ctr_metrics, SCORES, LIKED),
    "paired": (partial(compare_paired, seed=1), SCORES, SCORES[::-1]),
    "answers": (compare_answers, SCORES, SCORES[::-1], LIKED, USERS, 1),
    "genres": (genre_matrix, pd.Series(["Drama|War", None, "War"])),
    "groups": (lambda rank, counts: metrics_by_group(rank, popularity_groups(counts)), np.arange(1, 15), ITEMS[:14]),
    "window": (choose_window, TABLE, True, 50, CandidateSettings(least_events=5, least_users=2)),
    "distances": (item_distances, TABLE["item_id"][:50], TABLE["item_id"][50:]),
    "shift": (shift_of_items, TABLE, 50),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_callers_data_stay_as_they_are(name):
    function, *arguments = CALLS[name]
    with unchanged(*arguments):
        function(*arguments)


def test_a_function_that_writes_into_an_array_fails_where_it_does():
    values = np.arange(3)
    with pytest.raises(ValueError, match="read-only"), unchanged(values):
        values += 1
    values += 1  # it is the caller's again
    assert values.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (pd.DataFrame({"a": [1, 2]}), lambda table: table.insert(1, "b", 0)),
        (pd.DataFrame({"a": [1, 2]}), lambda table: table.drop(index=0, inplace=True)),
        (pd.Series([1.0, None]), lambda series: series.fillna(0, inplace=True)),
        (torch.arange(3), lambda tensor: tensor.add_(1)),
        ({"vectors": [torch.arange(3)]}, lambda parts: parts["vectors"].append(torch.arange(1))),
    ],
)
def test_a_function_that_changes_anything_else_fails_behind_it(value, change):
    with pytest.raises(AssertionError, match="a caller's data was changed"), unchanged(value):
        change(value)


def test_views_and_tensors_of_arrays_are_given_back_writeable():
    array = np.zeros((2, 3))
    with unchanged(SimpleNamespace(), array[0], array, torch.ones(2).numpy()):
        pass
    assert array[0].flags.writeable
