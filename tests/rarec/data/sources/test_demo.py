import hashlib

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rarec.data import schemas
from rarec.data.checks import check_schema, check_time_order, check_unique_interactions
from rarec.data.raw import read_raw
from rarec.data.sources.demo import DemoSettings, generate_demo, shuffle_control
from rarec.data.tables import build_tables


@pytest.fixture(scope="module")
def raw(specs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    generate_demo(DemoSettings(), folder)
    return read_raw(specs["demo"], folder)


@pytest.fixture(scope="module")
def tables(specs, raw):
    return build_tables(specs["demo"], raw)


def hit_rates(data: pd.DataFrame) -> dict[str, float]:
    """HR@10 of each user's last item among unseen ones: by popularity, and by what followed the item before it."""
    users, items = data["user_index"].to_numpy(), data["item_index"].to_numpy()
    count = items.max() + 1
    last = np.append(users[1:] != users[:-1], True)
    popularity = np.bincount(items[~last], minlength=count).astype(float)
    follows = np.zeros((count, count))
    pairs = np.flatnonzero((users[1:] == users[:-1]) & ~last[1:])
    np.add.at(follows, (items[pairs], items[pairs + 1]), 1)
    tests = np.flatnonzero(last)
    seen = np.zeros((users.max() + 1, count), dtype=bool)
    seen[users[~last], items[~last]] = True
    rates = {}
    bigram = follows[items[tests - 1]] + 1e-6 * popularity
    for name, scores in (("popularity", np.tile(popularity, (len(tests), 1))), ("bigram", bigram)):
        scores[seen[users[tests]]] = -1
        target = scores[np.arange(len(tests)), items[tests]]
        rates[name] = float(((scores > target[:, None]).sum(axis=1) < 10).mean())
    return rates


def test_size_and_shape(raw, tables):
    assert raw.quarantine.empty
    assert (tables.counts["users"], tables.counts["items"]) == (1200, 500)
    assert 40_000 <= tables.counts["interactions"] <= 60_000
    assert tables.interactions.groupby("user_id").size().min() >= 20
    assert set(tables.interactions.rating.unique()) == {1, 2, 3, 4, 5}
    assert check_schema(tables.interactions, schemas.INTERACTIONS)[0]
    assert check_schema(tables.items, schemas.ITEMS)[0]
    assert check_schema(tables.users, schemas.USERS)[0]
    assert check_time_order(tables.interactions)[0]


def test_no_user_meets_a_film_twice(specs, tables):
    assert check_unique_interactions(specs["demo"], tables.interactions)[0]


def test_text_and_profiles_are_complete(tables):
    assert tables.items.title.is_unique
    assert tables.items[["title", "genres", "year"]].notna().all(axis=None)
    assert tables.items.title.str.contains("é").any(), "latin-1 text must go through the reader"
    assert tables.users[["gender", "age_group", "occupation", "zip_code"]].notna().all(axis=None)


def test_long_tail(tables):
    counts = np.sort(np.bincount(tables.interactions.item_index))[::-1]
    assert 0.15 < counts[:50].sum() / counts.sum() < 0.4
    assert counts[0] > 3 * np.median(counts)


def test_labels_are_balanced(specs, tables):
    assert 0.5 < specs["demo"].is_positive(tables.interactions.rating.to_numpy()).mean() < 0.75


def test_next_item_can_be_learned_and_the_control_cannot(tables):
    rates = hit_rates(tables.interactions)
    assert 0.05 < rates["popularity"] < 0.2
    assert 0.3 < rates["bigram"] < 0.7
    control = hit_rates(shuffle_control(tables.interactions, seed=1))
    assert 0.02 < control["popularity"] < 0.2
    assert control["bigram"] < 0.1


def recalled(data: pd.DataFrame) -> tuple[float, float, float]:
    """Of films with the same two films before them elsewhere: their share, how often most others saw the same next,
    and how many others there are (median)."""
    users, items = data["user_index"].to_numpy(), data["item_index"].to_numpy()
    inside = (users[2:] == users[1:-1]) & (users[1:-1] == users[:-2])
    triples = np.column_stack([items[:-2], items[1:-1], items[2:]])[inside]
    states, state = np.unique(triples[:, :2], axis=0, return_inverse=True)
    size = np.bincount(state.ravel(), minlength=len(states))
    _, triple, count = np.unique(triples, axis=0, return_inverse=True, return_counts=True)
    others, same = size[state.ravel()] - 1, count[triple.ravel()] - 1
    asked = others >= 1
    return float(asked.mean()), float((same[asked] > others[asked] / 2).mean()), float(np.median(others[asked]))


def test_programmes_are_rare_and_can_be_recalled(tables):
    """What a memory of similar users is for: few others were in the same place, and they know what comes next."""
    share, known, others = recalled(tables.interactions)
    assert share > 0.5
    assert known > 0.35  # without programmes it is 0.01
    assert others <= 8
    _, known, _ = recalled(shuffle_control(tables.interactions, seed=1))
    assert known < 0.1


def rating_auc(tables, data: pd.DataFrame) -> float:
    """AUC of 'rating > 3' on a random fifth, by what other rows say of the film and of the user with its genres."""
    data = data.assign(positive=data.rating > 3, genres=tables.items.genres.to_numpy()[data.item_index])
    test = np.random.default_rng(0).random(len(data)) < 0.2
    train, test = data[~test], data[test]
    mean = train.positive.mean()

    def smoothed(keys):
        groups = train.groupby(keys).positive
        rates = ((groups.sum() + 3 * mean) / (groups.size() + 3)).rename("rate")
        return test.merge(rates, left_on=keys, right_index=True, how="left").rate.fillna(mean).to_numpy()

    return float(roc_auc_score(test.positive, smoothed(["item_id"]) + smoothed(["user_id", "genres"])))


def test_ratings_can_be_learned_and_the_control_cannot(tables):
    assert 0.75 < rating_auc(tables, tables.interactions) < 0.92
    # What is left is how kindly each user rates, which the shuffle keeps.
    assert 0.5 < rating_auc(tables, shuffle_control(tables.interactions, seed=1)) < 0.66


def test_tastes_drift(tables):
    """Genres of a user's last ten films differ more from the first ten than the second ten do."""
    genres = tables.items.genres.str.get_dummies().to_numpy(float)
    data = tables.interactions
    near, far = [], []
    for _, rows in data.groupby("user_index"):
        if len(rows) < 60:
            continue
        vectors = genres[rows.item_index]
        first, second, last = vectors[:10].mean(0), vectors[10:20].mean(0), vectors[-10:].mean(0)
        near.append(np.linalg.norm(first - second))
        far.append(np.linalg.norm(first - last))
    assert np.mean(far) > 1.02 * np.mean(near)


def test_control_keeps_popularity_activity_and_its_input(tables):
    before = tables.interactions.copy(deep=True)
    control = shuffle_control(tables.interactions, seed=3)
    pd.testing.assert_frame_equal(tables.interactions, before)
    assert sorted(control.item_id) == sorted(before.item_id)
    assert (tables.items.item_id.to_numpy()[control.item_index] == control.item_id).all()
    kept = ["user_id", "user_index", "rating", "timestamp"]
    pd.testing.assert_frame_equal(control[kept], before[kept])
    assert (control.item_index != before.item_index).mean() > 0.9


def test_same_seed_same_files(tmp_path):
    digests = []
    for i, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(i)
        folder.mkdir()
        generate_demo(DemoSettings(users=20, items=100, interactions_per_user=25, seed=seed), folder)
        digests.append(
            [hashlib.sha256((folder / f"{n}.dat").read_bytes()).hexdigest() for n in ("users", "movies", "ratings")]
        )
    assert digests[0] == digests[1]
    assert all(one != other for one, other in zip(digests[0], digests[2], strict=True))


def test_transition_probability_makes_the_structure(specs, tmp_path):
    generate_demo(DemoSettings(transition_probability=0.0, programmes=0), tmp_path)
    rates = hit_rates(build_tables(specs["demo"], read_raw(specs["demo"], tmp_path)).interactions)
    assert rates["bigram"] < 0.15
