"""New rows beside the published ones: late events, repetitions, rows that do not fit."""

import numpy as np
import pandas as pd
import pytest

from rarec.data.incoming.merge import merge_incoming
from rarec.data.incoming.rows import COLUMNS, ROW_TYPES, Incoming
from rarec.data.raw import RawTables
from rarec.data.spec import builtin_specs
from rarec.data.tables import build_tables

CLOCK = builtin_specs()["ml-100k"].model_copy(update={"duplicates": "keep-last"})


def tables(rows, **columns):
    names = ["user_id", "item_id", "rating", "timestamp"]
    interactions = pd.DataFrame(rows, columns=names).astype({"rating": "float32"}).assign(**columns)
    quarantine = pd.DataFrame(columns=["file", "line", "reason", "text"]).astype(
        {"file": "str", "line": "int64", "reason": "str", "text": "str"}
    )
    source = {"role": "interactions", "file": "published", "bytes": 1, "sha256": "0", "rows": len(rows)}
    return RawTables.of(interactions, None, None, quarantine, [source])


def arrived(rows):
    table = pd.DataFrame(
        [(1, line, *row) for line, row in enumerate(rows, 2)], columns=["entry", "line", *COLUMNS]
    ).astype({"user_id": "str", "item_id": "str"})
    files = pd.DataFrame({"entry": [1], "file": ["new.csv"]})
    bad = pd.DataFrame(columns=["entry", "file", "line", "reason", "text"]).astype({"line": "int64"})
    return Incoming(table.astype(ROW_TYPES), files, bad)


def held(raw):
    return list(raw.interactions.itertuples(index=False, name=None))


PUBLISHED = [(1, 10, 4.0, 500), (1, 11, 3.0, 600), (2, 10, 5.0, 700)]


def test_late_events_take_their_place_in_time_and_repetitions_none(tmp_path):
    raw, new = tables(PUBLISHED), arrived([(1, 12, 2, 550), (1, 10, 4, 500), (2, 13, 1, 100), (2, 13, 1, 100)])
    merged = merge_incoming(CLOCK, raw, new, tmp_path)
    assert held(merged.raw) == [*PUBLISHED, (1, 12, 2.0, 550), (2, 13, 1.0, 100)]
    assert merged.counts == {
        "incoming_rows": 2,
        "incoming_there_already": 2,
        "incoming_quarantined": 0,
        "published_rows_replaced": 0,
    }
    clean = build_tables(CLOCK, merged.raw).interactions
    assert clean.groupby("user_id")["item_id"].agg(list).to_dict() == {1: [10, 12, 11], 2: [13, 10]}
    assert held(raw) == PUBLISHED  # as it was


@pytest.mark.parametrize(
    ("policy", "clean"),
    [
        ("keep-last", [(1, 10, 600), (1, 11, 900)]),
        ("keep-all", [(1, 11, 400), (1, 10, 500), (1, 10, 600), (1, 11, 900)]),
    ],
)
def test_other_ratings_of_a_published_pair_stand_beside_it(tmp_path, policy, clean):
    spec = CLOCK.model_copy(update={"duplicates": policy})
    raw = tables([(1, 10, 4.0, 500), (1, 11, 3.0, 900)])
    merged = merge_incoming(spec, raw, arrived([(1, 10, 2, 600), (1, 11, 1, 400)]), tmp_path)
    assert merged.counts["incoming_rows"] == 2
    assert merged.counts["incoming_there_already"] == 0
    table = build_tables(spec, merged.raw).interactions
    assert list(table[["user_id", "item_id", "timestamp"]].itertuples(index=False, name=None)) == clean


def test_where_a_pair_may_occur_once_the_later_rating_stays(tmp_path):
    spec = CLOCK.model_copy(update={"duplicates": "error"})
    raw = tables([(1, 10, 4.0, 500), (1, 11, 3.0, 900), (2, 10, 5.0, 700)])
    # Later than the published one; earlier; two of a new pair, the later one first.
    merged = merge_incoming(
        spec, raw, arrived([(1, 10, 2, 600), (1, 11, 1, 400), (2, 12, 1, 950), (2, 12, 2, 940)]), tmp_path
    )
    assert held(merged.raw) == [(1, 11, 3.0, 900), (2, 10, 5.0, 700), (1, 10, 2.0, 600), (2, 12, 1.0, 950)]
    assert merged.counts["published_rows_replaced"] == 1
    assert merged.counts["incoming_there_already"] == 2
    build_tables(spec, merged.raw)  # no pair occurs twice


def test_without_a_clock_new_rows_stand_behind_the_published_ones(tmp_path):
    spec = builtin_specs()["amazon-beauty"]
    published = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "order": [1, 2, 1]})
    raw = RawTables.of(published, None, None, tables([]).quarantine, [])
    new = arrived([("a", "z", np.nan, 70), ("c", "x", np.nan, -1), ("a", "w", np.nan, 60), ("a", "z", np.nan, 70)])
    merged = merge_incoming(spec, raw, new, tmp_path)
    assert held(merged.raw)[3:] == [("a", "z", 4), ("c", "x", 1), ("a", "w", 3)]
    assert merged.counts["incoming_there_already"] == 1


def test_rows_that_do_not_fit_the_published_ones_are_set_aside_by_name(tmp_path):
    spec = CLOCK.model_copy(update={"unknown_items": "error"})
    raw = tables(PUBLISHED)
    raw = RawTables.of(raw.interactions, pd.DataFrame({"item_id": [10, 11]}), None, raw.quarantine, raw.sources)
    rows = [
        (1, 10, 3, 800),
        ("u7", 10, 3, 800),
        (1, "010", 3, 800),
        (1, 99, 3, 800),
        (1, 11, np.nan, 800),
        (1, 11, 3, -1),
    ]
    merged = merge_incoming(spec, raw, arrived(rows), tmp_path)
    assert held(merged.raw) == [*PUBLISHED, (1, 10, 3.0, 800)]
    aside = merged.raw.quarantine
    assert aside["file"].unique().tolist() == ["incoming/new.csv"]
    assert list(zip(aside["line"], aside["reason"], strict=True)) == [
        (3, "user_id 'u7' is not a whole number like the data set's other ids"),
        (5, "item_id '99' is not in the item file"),
        (6, "rating is missing"),
        (7, "timestamp is missing"),
    ]
    assert merged.counts["incoming_quarantined"] == 4
    assert merged.counts["incoming_there_already"] == 1  # 010 is 10, as all ids are numbers
    assert merged.raw.warnings == ("item_id: 1 incoming ids are written otherwise (first: '010'); here '10'.",)


def test_new_ids_that_are_written_in_two_ways_are_one(tmp_path):
    published = pd.DataFrame({"user_id": ["01", "2"], "item_id": ["080442957X", "0195153448"], "rating": 4.0})
    raw = tables([])
    raw = RawTables.of(
        published.assign(timestamp=[500, 600]).astype({"rating": "float32"}), None, None, raw.quarantine, raw.sources
    )
    new = arrived([("1", "080442957x", 2, 700), ("07", "155061224x", 3, 800), ("7", "155061224X", 3, 900)])
    merged = merge_incoming(CLOCK, raw, new, tmp_path)
    assert held(merged.raw)[2:] == [
        ("01", "080442957X", 2.0, 700),
        ("07", "155061224x", 3.0, 800),
        ("07", "155061224x", 3.0, 900),
    ]


def test_new_ids_of_more_digits_than_numbers_have_stay_apart(tmp_path):
    many = [one * 40 for one in "98765"]
    published = pd.DataFrame({"user_id": many[:2], "item_id": ["a", "b"], "rating": 4.0, "timestamp": [500, 600]})
    raw = RawTables.of(published.astype({"rating": "float32"}), None, None, tables([]).quarantine, tables([]).sources)
    merged = merge_incoming(CLOCK, raw, arrived([(user, "a", 2, 700) for user in many[2:]]), tmp_path)
    assert [row[0] for row in held(merged.raw)] == many


def test_a_new_id_that_is_no_whole_number_is_set_aside_however_many_digits_it_has(tmp_path):
    merged = merge_incoming(CLOCK, tables(PUBLISHED), arrived([("1" * 40, 10, 3, 800)]), tmp_path)
    assert held(merged.raw) == PUBLISHED
    assert merged.raw.quarantine.reason.str.contains("is not a whole number like the data set's other ids").all()
    assert merged.counts["incoming_quarantined"] == 1
