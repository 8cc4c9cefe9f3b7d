import numpy as np
import pandas as pd
import pytest

from rarec.champions.promotion import CandidateSettings
from rarec.champions.window import Window, choose_window, item_distances, newest_window, unknown_shares

TABLE = pd.DataFrame(
    {
        "user_id": ["a", "a", "a", "a", "b", "b", "c", "c", "c"],
        "item_id": ["x", "y", "x", "z", "x", "y", "x", "y", "x"],
        "user_index": [0, 0, 0, 0, 1, 1, 2, 2, 2],
        "item_index": [0, 1, 0, 2, 0, 1, 0, 1, 0],
        "timestamp": [1, 5, 6, 9, 5, 7, 1, 2, 8],
    }
)


def test_window_holds_the_events_since_a_time_but_for_repeated_ones():
    window = newest_window(TABLE, 5)
    assert window.events.tolist() == [1, 3, 4, 5]  # x of a at 6 and of c at 8 were there before
    assert window.users.tolist() == [0, 0, 1, 1]


def test_without_a_time_it_is_the_last_event_of_users_with_three():
    assert newest_window(TABLE, None).events.tolist() == [3]  # b is too short, c repeats
    assert len(newest_window(TABLE.iloc[:0], None)) == 0


def test_users_count_alike():
    window = Window(np.array([1, 2, 3, 7]), np.array([0, 0, 0, 4]))
    ranks = np.array([1.0, 11.0, np.inf, 2.0])
    figures = window.figures(ranks)
    assert figures["HR@10"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["NDCG@10"] == pytest.approx((1 / 3 + 1 / np.log2(3)) / 2)
    assert figures["missed"] == 0.25
    of_users = [1 / 3, 1 / np.log2(3)]
    assert figures["NDCG@10 standard error"] == pytest.approx(abs(of_users[0] - of_users[1]) / 2)  # sd / sqrt(2)
    assert Window(np.array([1]), np.array([0])).figures(ranks[:1])["NDCG@10 standard error"] == 0.5
    better = window.compare(ranks, np.array([1.0, 1.0, np.inf, 1.0]))
    assert better.n_users == 2
    assert better.difference == pytest.approx((1 / 3 + (1 - 1 / np.log2(3))) / 2)


def test_events_are_drawn_with_the_seed():
    window = Window(np.arange(100), np.arange(100) // 3)
    drawn = window.drawn(10, seed=1)
    assert len(drawn) == 10
    assert (drawn.users == drawn.events // 3).all()
    assert (np.diff(drawn.events) > 0).all()
    assert drawn.events.tolist() == window.drawn(10, seed=1).events.tolist() != window.drawn(10, seed=2).events.tolist()
    assert window.drawn(100, seed=1) is window


def test_shares_of_what_is_unknown():
    shares = unknown_shares(TABLE, newest_window(TABLE, 5), pd.Series(["x", "z"]), pd.Series(["a"]))
    assert shares == {"unknown_items": 0.5, "unknown_users": 0.5}


def distance(before, after):
    return item_distances(before, after)["item_distance"]


@pytest.mark.parametrize("events", [50, 100, 1000])
def test_events_drawn_at_random_do_not_shift_however_few_they_are(events):
    generator = np.random.default_rng(1)
    before = pd.Series(generator.zipf(1.3, 100_000) % 5000)
    found = item_distances(before, before.sample(events, random_state=2))
    assert found["item_shift"] < 0.25  # pre-training is asked for at .5
    assert found["item_distance"] == pytest.approx(found["item_distance_by_chance"], abs=0.1)
    if events <= 100:
        assert found["item_distance"] > 0.5  # so that the distance alone would tell of drift
    assert item_distances(before, before.sample(events, random_state=2) + 5000)["item_shift"] == pytest.approx(1)
    half = pd.concat([before.sample(events // 2, random_state=2), before.sample(events // 2, random_state=3) + 5000])
    assert 0.25 < item_distances(before, half)["item_shift"] < 0.9


def test_of_the_newest_events_those_of_the_leave_one_out_test():
    window = newest_window(TABLE, None)
    for since in range(int(TABLE["timestamp"].max()) + 2):
        kept = newest_window(TABLE, since, last_only=True)
        times = TABLE["timestamp"].to_numpy()
        assert kept.events.tolist() == [event for event in window.events if times[event] >= since]


def test_distance_of_item_distributions():
    assert distance(pd.Series(["x", "y"]), pd.Series(["y", "x", "x", "y"])) == pytest.approx(0)
    assert distance(pd.Series(["x"]), pd.Series([1])) == pytest.approx(1)
    # Half of the mass moves: divergence = 1/2 KL([1/2,1/2] | [3/4,1/4]) + 1/2 KL([1, 0] | [3/4, 1/4]).
    divergence = 0.5 * (0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25)) + 0.5 * np.log2(1 / 0.75)
    assert distance(pd.Series(["x", "y"]), pd.Series(["x"])) == pytest.approx(np.sqrt(divergence))


@pytest.mark.parametrize(
    ("since", "changed", "what", "events"),
    [
        (30, {}, "all events that came after the training data", 20),
        (30, {"most_events": 7}, "7 of all events that came after the training data", 7),
        (30, {"least_events": 21}, "the last event of every user (leave-one-out)", 10),
        (30, {"least_users": 11}, "the last event of every user (leave-one-out)", 10),
        (41, {}, "the last event of every user (leave-one-out)", 10),
    ],
)
def test_window_of_a_comparison(since, changed, what, events):
    table = pd.DataFrame(
        {
            "user_index": np.repeat(np.arange(10), 4),
            "item_index": np.arange(40),
            "timestamp": np.tile([10, 20, 30, 40], 10),
        }
    )
    settings = CandidateSettings(**{"least_events": 20, "least_users": 10, **changed})
    window, told = choose_window(table, True, since, settings)
    assert (told["what"], told["events"], len(window)) == (what, events, events)
    assert (told["to"], told["newest"]) == (40, 40)
