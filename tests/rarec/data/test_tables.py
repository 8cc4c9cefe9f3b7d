import numpy as np
import pandas as pd
import pytest

from rarec.data import schemas
from rarec.data.checks import check_published_counts, check_schema, check_time_order, check_unique_interactions
from rarec.data.quarantine import COLUMNS
from rarec.data.raw import RawTables, read_raw
from rarec.data.spec import DatasetSpec
from rarec.data.tables import build_tables
from rarec.errors import InputError


def make_spec(**fields):
    base = {
        "name": "own",
        "title": "Own",
        "domain": "movies",
        "rating_scale": [1, 5],
        "sources": [{"format": "movielens-csv"}],
    }
    if fields.get("time", "clock") != "clock":
        base["sources"] = [{"format": "recbole"}]
    return DatasetSpec.model_validate(base | fields)


def make_raw(rows, columns=("user_id", "item_id", "rating", "timestamp"), items=None, users=None):
    data = pd.DataFrame(rows, columns=list(columns))
    if "rating" in data:
        data["rating"] = data["rating"].astype("float32")
    sources = [{"role": "interactions", "file": "own.inter"}, {"role": "items", "file": "own.item"}]
    return RawTables.of(data, items, users, pd.DataFrame(columns=COLUMNS), sources)


def frozen_copy(raw):
    return [None if table is None else table.copy(deep=True) for table in (raw.interactions, raw.items, raw.users)]


def check_unchanged(raw, before):
    for table, copy in zip((raw.interactions, raw.items, raw.users), before, strict=True):
        if copy is not None:
            pd.testing.assert_frame_equal(table, copy)


ROWS = [(7, 30, 4, 200), (5, 10, 3, 100), (7, 10, 5, 100), (7, 20, 1, 100), (5, 30, 2, 50)]


def test_sorted_by_user_time_and_appearance():
    raw = make_raw(ROWS)
    before = frozen_copy(raw)
    tables = build_tables(make_spec(), raw)
    assert tables.interactions.to_numpy(dtype=float).tolist() == [
        [5, 30, 2, 50, 0, 2],
        [5, 10, 3, 100, 0, 0],
        [7, 10, 5, 100, 1, 0],
        [7, 20, 1, 100, 1, 1],
        [7, 30, 4, 200, 1, 2],
    ]
    assert tables.items.item_id.tolist() == [10, 20, 30]
    assert tables.users.user_id.tolist() == [5, 7]
    assert tables.time == "clock"
    check_unchanged(raw, before)


def test_order_of_rows_does_not_matter_without_ties():
    rows = [(u, i, 3, 1000 * u + i * 7 % 31) for u in range(1, 6) for i in range(1, 20, u)]
    one = build_tables(make_spec(), make_raw(rows))
    other = build_tables(make_spec(), make_raw(rows[::-1]))
    pd.testing.assert_frame_equal(one.interactions, other.interactions)


def test_no_ratings():
    tables = build_tables(make_spec(), make_raw([(1, 2, 3)], ("user_id", "item_id", "timestamp")))
    assert tables.interactions.rating.isna().all()
    assert check_schema(tables.interactions, schemas.INTERACTIONS) == (True, {"rows": 1})


def test_published_order_is_the_timestamp():
    raw = make_raw([("b", "x", 2), ("b", "y", 1), ("a", "x", 9)], ("user_id", "item_id", "order"))
    tables = build_tables(make_spec(time="order"), raw)
    assert tables.time == "order"
    assert tables.interactions[["user_id", "item_id", "timestamp"]].to_numpy().tolist() == [
        ["a", "x", 9],
        ["b", "y", 1],
        ["b", "x", 2],
    ]


def test_without_time_the_order_is_drawn_from_the_seed():
    rows = [(u, i, 5) for u in range(50) for i in range(20)]
    columns = ("user_id", "item_id", "rating")
    tables = build_tables(make_spec(time="none"), make_raw(rows, columns))
    data = tables.interactions
    assert tables.time == "none"
    assert data.timestamp.tolist() == list(range(1, 21)) * 50
    # Every item once a user, in orders that differ from each other and from the file's.
    orders = data.item_index.to_numpy().reshape(50, 20)
    assert (np.sort(orders, axis=1) == np.arange(20)).all()
    assert len({tuple(order) for order in orders}) == 50
    assert abs(orders[:, 0].mean() - 9.5) < 3
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    pd.testing.assert_frame_equal(data, build_tables(make_spec(time="none"), make_raw(shuffled, columns)).interactions)
    other = build_tables(make_spec(time="none", split_seed=1), make_raw(rows, columns)).interactions
    assert (other.item_index != data.item_index).mean() > 0.8


def slow_k_core(users, items, k):
    """The definition: take away whatever has too few, until nothing has."""
    kept = set(range(len(users)))
    while True:
        bad = {
            row
            for row in kept
            if sum(users[r] == users[row] for r in kept) < k or sum(items[r] == items[row] for r in kept) < k
        }
        if not bad:
            return sorted(kept)
        kept -= bad


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_k_core_equals_the_slow_definition(k):
    rng = np.random.default_rng(k)
    for _ in range(5):
        pairs = np.unique(rng.integers(0, 12, (60, 2)), axis=0)
        raw = make_raw([(*pair, 3, time) for time, pair in enumerate(pairs.tolist())])
        kept = slow_k_core(*pairs.T.tolist(), k)
        if kept:
            table = build_tables(make_spec(k_core=k), raw).interactions
            assert sorted(zip(table.user_id, table.item_id, strict=True)) == [tuple(pairs[row]) for row in kept]
        else:
            with pytest.raises(InputError, match=f"{k}-core"):
                build_tables(make_spec(k_core=k), raw)


def test_k_core_counts_and_compact_indices():
    # Users 1 to 3 share items 1 to 3; user 9 and item 9 hang on.
    rows = [(u, i, 3, u * 10 + i) for u in (1, 2, 3) for i in (1, 2, 3)] + [(9, 1, 3, 0), (1, 9, 3, 0)]
    tables = build_tables(make_spec(k_core=2), make_raw(rows))
    assert tables.counts["users_before_k_core"] == 4
    assert tables.counts["items_before_k_core"] == 4
    assert tables.counts["interactions_before_k_core"] == 11
    assert tables.counts["dropped_k_core"] == 2
    assert (tables.counts["users"], tables.counts["items"], tables.counts["interactions"]) == (3, 3, 9)
    assert tables.users.user_id.tolist() == [1, 2, 3]
    assert tables.items.item_id.tolist() == [1, 2, 3]
    assert (tables.interactions.user_id == tables.users.user_id.to_numpy()[tables.interactions.user_index]).all()
    assert (tables.interactions.item_id == tables.items.item_id.to_numpy()[tables.interactions.item_index]).all()


def test_data_set_emptied_by_k_core():
    with pytest.raises(InputError, match=r"own: the 5-core of its 5 interactions is empty; lower `k_core`\."):
        build_tables(make_spec(k_core=5), make_raw(ROWS))


def test_data_set_of_implicit_ratings_only():
    raw = make_raw([(1, 2, 0, 5)])
    with pytest.raises(InputError, match="own: all interactions were dropped"):
        build_tables(make_spec(implicit_rating=0), raw)


def test_implicit_ratings_are_dropped_and_counted():
    tables = build_tables(make_spec(implicit_rating=0), make_raw([*ROWS, (8, 10, 0, 1), (5, 20, 0, 1)]))
    assert tables.counts["dropped_implicit"] == 2
    assert tables.counts["interactions"] == 5
    assert tables.users.user_id.tolist() == [5, 7]


def test_unknown_item():
    items = pd.DataFrame({"item_id": [10, 20], "title": ["A", "B"]})
    message = (
        r"own\.inter: 2 interactions have 1 items that own\.item lacks; first: item_id 30 of user_id 7\. "
        r"Complete the item file, or set unknown_items = 'drop'"
    )
    with pytest.raises(InputError, match=message):
        build_tables(make_spec(), make_raw(ROWS, items=items))
    tables = build_tables(make_spec(unknown_items="drop"), make_raw(ROWS, items=items))
    assert tables.counts["dropped_unknown_items"] == 2
    assert tables.interactions.item_id.tolist() == [10, 10, 20]


def test_unknown_item_whose_row_is_in_the_quarantine():
    items = pd.DataFrame({"item_id": [10, 20], "title": ["A", "B"]})
    raw = make_raw(ROWS, items=items)
    raw.quarantine.loc[0] = ["own.item", 4, "not valid utf-8", "30"]
    with pytest.raises(InputError, match=r"own\.item lacks \(1 of its rows are unreadable and quarantined\)"):
        build_tables(make_spec(), raw)


REPEATED = [(1, 10, 5, 100), (1, 20, 5, 150), (1, 10, 2, 300), (1, 10, 5, 100), (2, 10, 1, 100)]


def test_repeated_interactions():
    message = (
        r"own: 2 interactions repeat a user and item; first: user_id 1 and item_id 10\. .*'keep-last' or 'keep-all'"
    )
    with pytest.raises(InputError, match=message):
        build_tables(make_spec(), make_raw(REPEATED))
    last = build_tables(make_spec(duplicates="keep-last"), make_raw(REPEATED))
    assert last.interactions[["user_id", "item_id", "rating"]].to_numpy().tolist() == [
        [1, 20, 5],
        [1, 10, 2],
        [2, 10, 1],
    ]
    assert last.counts["dropped_duplicates"] == 2
    every = build_tables(make_spec(duplicates="keep-all"), make_raw(REPEATED))
    assert every.interactions.timestamp.tolist() == [100, 150, 300, 100]
    assert every.counts["dropped_duplicates"] == 1


def test_movie_text():
    items = pd.DataFrame(
        {
            "item_id": [50, 40, 30, 20, 10, 60],
            "title": [
                "Tom &amp;  Jerry (1992)",
                "Two Foxes (2006–2007)",
                "Odd (1000)",
                "",
                "(2001)",
                "Unwatched (1990)",
            ],
            "genres": ["Animation|Comedy", "(no genres listed)", "unknown", "", "Drama", "Drama"],
        }
    )
    rows = [(1, i, 3, i) for i in (10, 20, 30, 40, 50)]
    items_table = build_tables(make_spec(), make_raw(rows, items=items)).items
    assert items_table.title.tolist() == ["(2001)", "item 20", "Odd (1000)", "Two Foxes", "Tom & Jerry"]
    assert items_table.year.fillna(0).tolist() == [0, 0, 0, 2006, 1992]
    assert items_table.genres.fillna("-").tolist() == ["Drama", "-", "-", "-", "Animation|Comedy"]
    assert check_schema(items_table, schemas.ITEMS)[0]


def test_book_titles_keep_their_brackets_and_years_have_bounds():
    items = pd.DataFrame(
        {
            "item_id": [1, 2, 3, 4],
            "title": ["Almanac (1999)", "B", "C", "D"],
            "year": ["1998", "0", "2030", "DK Publishing"],
            "author": ["  X   Y ", "", "&#321;ukasz", "Z"],
        }
    )
    table = build_tables(make_spec(domain="books"), make_raw([(1, i, 3, i) for i in (1, 2, 3, 4)], items=items)).items
    assert table.title[0] == "Almanac (1999)"
    assert table.year.fillna(-1).tolist() == [1998, -1, -1, -1]
    assert table.author.fillna("-").tolist() == ["X Y", "-", "Łukasz", "Z"]


def test_catalogue_order_does_not_matter():
    items = pd.DataFrame({"item_id": [30, 10, 20, 99], "title": ["C", "A", "B", "unused"]})
    one = build_tables(make_spec(), make_raw(ROWS, items=items)).items
    other = build_tables(make_spec(), make_raw(ROWS, items=items[::-1].reset_index(drop=True))).items
    pd.testing.assert_frame_equal(one, other)
    assert one.title.tolist() == ["A", "B", "C"]
    assert one.item_index.tolist() == [0, 1, 2]


def test_users():
    users = pd.DataFrame({"user_id": [7, 8], "age": ["24.0", "30"], "gender": ["F", "M"], "zip_code": ["01002", "1"]})
    tables = build_tables(make_spec(), make_raw(ROWS, users=users))
    assert tables.users.user_id.tolist() == [5, 7]
    assert tables.users.age.fillna(-1).tolist() == [-1, 24]
    assert tables.users.gender.fillna("-").tolist() == ["-", "F"]
    assert tables.users.zip_code.fillna("-").tolist() == ["-", "01002"]
    assert tables.counts["users_without_profile"] == 1
    assert check_schema(tables.users, schemas.USERS)[0]


@pytest.mark.parametrize(("age", "expected"), [("4", -1), ("5", 5), ("100", 100), ("101", -1), ("NULL", -1), ("", -1)])
def test_implausible_ages_are_missing(age, expected):
    users = pd.DataFrame({"user_id": [5, 7], "age": [age, "30"]})
    assert build_tables(make_spec(), make_raw(ROWS, users=users)).users.age.fillna(-1)[0] == expected


def test_bookcrossing_from_files(specs, samples):
    spec = specs["bookcrossing"].model_copy(update={"quarantine_limit": 1.0})
    raw = read_raw(spec, samples / "bookcrossing")
    before = frozen_copy(raw)
    tables = build_tables(spec, raw)
    assert tables.counts == {
        "interactions_read": 6,
        "items_read": 2,
        "users_read": 3,
        "interactions_quarantined": 0,
        "items_quarantined": 1,
        "users_quarantined": 0,
        "dropped_implicit": 1,
        "dropped_unknown_items": 1,
        "dropped_duplicates": 0,
        "users_before_k_core": 3,
        "items_before_k_core": 2,
        "interactions_before_k_core": 4,
        "dropped_k_core": 0,
        "users": 3,
        "items": 2,
        "interactions": 4,
        "users_without_profile": 0,
    }
    assert tables.items.publisher.tolist() == ["Fox & Sons", "Éditions du Test"]
    assert tables.users.age.fillna(-1).tolist() == [-1, 18, -1]
    assert spec.is_positive(tables.interactions.rating.to_numpy()).sum() == 3
    for table, schema in (
        (tables.interactions, schemas.INTERACTIONS),
        (tables.items, schemas.ITEMS),
        (tables.users, schemas.USERS),
    ):
        assert check_schema(table, schema)[0]
    check_unchanged(raw, before)


def test_both_forms_of_ml_100k_give_the_same_tables(specs, samples):
    spec = specs["ml-100k"]
    official, recbole = (
        build_tables(spec, read_raw(spec, samples / name)) for name in ("ml-100k-official", "ml-100k-recbole")
    )
    pd.testing.assert_frame_equal(official.interactions, recbole.interactions)
    pd.testing.assert_frame_equal(official.items, recbole.items)
    pd.testing.assert_frame_equal(official.users, recbole.users)


# ---- checks


@pytest.fixture
def tables():
    return build_tables(make_spec(), make_raw(ROWS))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.assign(timestamp=t.timestamp.astype(str)), "timestamp: time"),
        (lambda t: t.assign(timestamp=-1 - t.timestamp), "timestamp: greater_than_or_equal_to(0)"),
        (lambda t: t.assign(user_id=t.user_id / 2), "user_id: id"),
        (lambda t: t.assign(item_id=[" ", "a", "b", "c", "d"]), "item_id: id"),
        (lambda t: t.drop(columns="rating"), "column_in_dataframe"),
        (lambda t: t.assign(extra=1), "column_in_schema"),
        (lambda t: t.assign(item_index=np.int32(-1)), "item_index: greater_than_or_equal_to(0)"),
    ],
)
def test_schema_check_names_the_fault(tables, change, fault):
    assert check_schema(tables.interactions, schemas.INTERACTIONS)[0]
    passed, details = check_schema(change(tables.interactions), schemas.INTERACTIONS)
    assert not passed
    assert details["faults"] >= 1
    assert any(fault in line for line in details["first"]), details


def test_schema_check_of_items(tables):
    passed, details = check_schema(tables.items.assign(title=[None, "a", " "]), schemas.ITEMS)
    assert not passed
    assert len(details["first"]) == 2
    assert not check_schema(tables.items.iloc[::-1], schemas.ITEMS)[0]
    assert not check_schema(tables.items.assign(item_id=[1, 1, 2]), schemas.ITEMS)[0]


def test_unique_check(tables):
    assert check_unique_interactions(make_spec(), tables.interactions)[0]
    twice = pd.concat([tables.interactions, tables.interactions.tail(1).assign(timestamp=999)])
    passed, details = check_unique_interactions(make_spec(), twice)
    assert not passed
    assert details == {"key": ["user_index", "item_index"], "repeated": 1, "first": [[7, 30, 999]]}
    assert check_unique_interactions(make_spec(duplicates="keep-all"), twice)[0]


def test_time_order_check(tables):
    assert check_time_order(tables.interactions) == (True, {"out_of_order": 0, "first_rows": []})
    swapped = tables.interactions.iloc[[1, 0, 2, 3, 4]]
    assert check_time_order(swapped) == (False, {"out_of_order": 1, "first_rows": [1]})
    ungrouped = tables.interactions.iloc[[2, 0, 1, 3, 4]]
    assert check_time_order(ungrouped) == (False, {"out_of_order": 1, "first_rows": [1]})


def test_published_counts_check_says_by_how_much(tables):
    spec = make_spec(expected_raw={"interactions": 5}, expected={"users": 2, "items": 5})
    assert check_published_counts(spec, tables.counts) == (
        False,
        {
            "interactions_read": {"found": 5, "published": 5, "difference": 0},
            "users": {"found": 2, "published": 2, "difference": 0},
            "items": {"found": 3, "published": 5, "difference": -2},
        },
    )
    assert check_published_counts(make_spec(), tables.counts) == (True, {})


# ---- the real files


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [
        ("ml-100k", 943, 1682, 100_000),
        ("ml-latest-small", 610, 9724, 100_836),
        ("amazon-beauty", 22_363, 12_101, 198_502),
        ("bookcrossing-small", 48_299, 18_184, 204_164),
    ],
)
def test_real_data(specs, real_data, name, users, items, interactions):
    spec = specs[name]
    raw = read_raw(spec, real_data / name)
    tables = build_tables(spec, raw)
    assert raw.quarantine.empty
    assert (len(tables.users), len(tables.items), len(tables.interactions)) == (users, items, interactions)
    for table, schema in (
        (tables.interactions, schemas.INTERACTIONS),
        (tables.items, schemas.ITEMS),
        (tables.users, schemas.USERS),
    ):
        assert check_schema(table, schema)[0]
    assert check_unique_interactions(spec, tables.interactions)[0]
    assert check_time_order(tables.interactions)[0]
    assert check_published_counts(spec, tables.counts)[0]


@pytest.mark.parametrize("time", ["clock", "none"])
def test_sorting_span_by_span_changes_nothing(time, monkeypatch):
    generator = np.random.default_rng(3)
    columns = {"user_id": generator.integers(0, 40, 900), "item_id": generator.integers(0, 60, 900), "rating": 3}
    if time == "clock":
        columns["timestamp"] = generator.integers(0, 50, 900)
    raw = make_raw(pd.DataFrame(columns), columns)
    spec = make_spec(time=time, duplicates="keep-last", k_core=3)
    whole = build_tables(spec, raw)
    monkeypatch.setattr("rarec.data.tables.SPAN_ROWS", 50)
    spans = build_tables(spec, raw)
    pd.testing.assert_frame_equal(spans.interactions, whole.interactions)
    assert len(whole.interactions) > 8 * 50
