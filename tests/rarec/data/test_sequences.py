import numpy as np
import pytest
from callers_data import unchanged
from raserec_toys import history_of, random_sequences, sequences_of

from rarec.data.sequences import (
    UserSequences,
    Windows,
    build_sequences,
    check_splits,
    context_starts,
    ranges,
    shared_windows,
    single_windows,
)
from rarec.errors import InputError

# Users with 5, 0, 2, 3 and 1 interactions; items are named by tens of the user.
TINY = sequences_of([[0, 1, 2, 3, 4], [], [10, 11], [20, 21, 22], [30]], n_items=31)

SHAPES = [[5, 0, 2, 3, 1], [1, 1], [0, 0, 4], [3], [40, 2, 9, 3, 0, 25, 8], [0]]


@pytest.fixture(params=SHAPES, ids=str)
def sequences(request):
    return random_sequences(request.param, n_items=9, seed=len(request.param))


def test_counts_and_parts_by_hand():
    assert TINY.n_users == 5
    assert TINY.lengths.tolist() == [5, 0, 2, 3, 1]
    assert TINY.user_of.tolist() == [0] * 5 + [2] * 2 + [3] * 3 + [4]
    assert TINY.train_ends.tolist() == [3, 5, 7, 8, 11]  # users 2 and 4 are too short to be split: train only
    assert TINY.evaluated_users().tolist() == [0, 3]
    counts = TINY.train_counts()
    assert np.flatnonzero(counts).tolist() == [0, 1, 2, 10, 11, 20, 30]
    assert counts.max() == 1
    assert len(counts) == 31


@pytest.mark.parametrize(
    ("split", "prefixes", "targets"),
    [("train", [0, 1, 5], [1, 2, 11]), ("valid", [2, 7], [3, 21]), ("test", [3, 8], [4, 22])],
)
def test_prefixes_and_next_items_by_hand(split, prefixes, targets):
    assert TINY.prefixes(split).tolist() == prefixes
    assert TINY.next_items(TINY.prefixes(split)).tolist() == targets


def test_tied_test_targets_by_hand():
    """Of three users with a test item one has it in the second of the validation item; short users do not count."""
    times = [[1, 2, 2], [1, 1, 2], [1, 2, 3, 4], [5, 5]]
    sequences = sequences_of([[0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1]], 4, times)
    assert sequences.tied_test_targets() == 1 / 3
    assert np.isnan(sequences_of([[0, 1]], 2, [[5, 5]]).tied_test_targets())


def test_seen_before_holds_the_prefix_and_never_the_target():
    offsets, seen = TINY.seen_before(TINY.prefixes("valid"))
    assert offsets.tolist() == [0, 3, 4]
    assert seen.tolist() == [0, 1, 2, 20]
    offsets, seen = TINY.seen_before(TINY.prefixes("test"))
    assert offsets.tolist() == [0, 4, 6]
    assert seen.tolist() == [0, 1, 2, 3, 20, 21]
    offsets, seen = TINY.seen_before(np.array([8, 0]))  # any order
    assert (offsets.tolist(), seen.tolist()) == ([0, 2, 3], [20, 21, 0])


def test_no_prefix_reads_or_predicts_what_is_held_out(sequences):
    user_of, last = sequences.user_of, sequences.offsets[1:] - 1
    evaluated = sequences.evaluated_users()
    train, valid, test = (sequences.prefixes(split) for split in ("train", "valid", "test"))
    for prefixes in (train, valid, test):
        assert np.all(user_of[prefixes] == user_of[prefixes + 1])  # the target is the same user's
        assert np.all(np.diff(prefixes) > 0)
    assert np.array_equal(test + 1, last[evaluated])  # the last item is the test target
    assert np.array_equal(valid + 1, test)  # ... the one before it the validation target
    held_out = {*(valid + 1).tolist(), *(test + 1).tolist()}
    assert held_out.isdisjoint((train + 1).tolist())
    assert held_out.isdisjoint(train.tolist())
    expected = [
        p
        for p in range(len(sequences.items) - 1)
        if user_of[p] == user_of[p + 1] and p + 1 not in held_out
    ]  # fmt: skip
    assert train.tolist() == expected
    in_train = [sequences.items[p] for p in range(len(sequences.items)) if p not in held_out]
    assert sequences.train_counts().tolist() == np.bincount(in_train, minlength=9).tolist()


def test_saved_sequences_come_back(sequences, tmp_path):
    with unchanged(sequences):
        sequences.save(tmp_path)
    back = UserSequences.load(tmp_path)
    assert back.n_items == sequences.n_items
    for name in ("offsets", "items", "timestamps"):
        one, other = getattr(back, name), getattr(sequences, name)
        assert one.dtype == other.dtype == np.int64
        assert np.array_equal(one, other)


def test_ranges():
    assert ranges(np.array([5, 0, 7, 2]), np.array([2, 0, 1, 3])).tolist() == [5, 6, 7, 2, 3, 4]
    assert ranges(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []


def test_build_sequences_by_hand():
    users, items, times = [0, 0, 0, 2, 2, 2, 2], [4, 1, 4, 0, 2, 3, 1], [10, 10, 12, 3, 5, 5, 9]
    columns = [np.array(column, dtype=np.int32) for column in (users, items, times)]
    with unchanged(*columns):
        built = build_sequences(*columns, n_users=4, n_items=5)
    assert built.offsets.tolist() == [0, 3, 3, 7, 7]
    assert built.items.tolist() == items
    assert built.timestamps.tolist() == times
    assert built.n_items == 5


@pytest.mark.parametrize(
    ("users", "times"), [([0, 1, 0], [1, 2, 3]), ([0, 0, 0], [1, 3, 2])], ids=["users apart", "times back"]
)
def test_unsorted_interactions_are_refused(users, times):
    with pytest.raises(InputError, match="not sorted by user and time"):
        build_sequences(users, [0, 0, 0], times, n_users=2, n_items=1, short_users="train-only")


def test_an_earlier_time_is_fine_for_the_next_user():
    built = build_sequences([0, 0, 0, 1, 1, 1], [0] * 6, [7, 8, 9, 1, 2, 3], n_users=2, n_items=1)
    assert built.lengths.tolist() == [3, 3]


def test_short_users_are_refused_by_name_or_train_only():
    users, items, times = [0, 0, 0, 1, 1, 3], [0] * 6, [1, 2, 3, 1, 2, 1]
    with pytest.raises(InputError, match=r"^2 users have fewer than three interactions \(first: user 1 with 2\)"):
        build_sequences(users, items, times, n_users=4, n_items=1)
    with pytest.raises(InputError, match=r"\(first: user 'B07' with 2\).*k_core = 3.*short_users = 'train-only'"):
        build_sequences(users, items, times, 4, 1, user_names=np.array(["A1", "B07", "C", "D"]))
    with pytest.raises(InputError, match=r"\(first: user 107 with 2\)"):
        build_sequences(users, items, times, 4, 1, user_names=np.array([9, 107, 5, 6]))
    kept = build_sequences(users, items, times, n_users=4, n_items=1, short_users="train-only")
    assert kept.prefixes("train").tolist() == [3]
    assert kept.evaluated_users().tolist() == [0]


def test_context_starts_by_hand():
    sequences = random_sequences([3, 12], n_items=5)  # the second user's items lie at 3 to 14
    prefixes = np.array([0, 2, 3, 7, 8, 9, 12, 14])  # of 1, 3, 1, 5, 6, 7, 10 and 12 items
    assert context_starts(sequences, prefixes, 5, 1).tolist() == [0, 0, 3, 3, 4, 5, 8, 10]
    assert context_starts(sequences, prefixes, 5, 4).tolist() == [0, 0, 3, 3, 7, 7, 11, 11]


@pytest.mark.parametrize("stride", [0, 6])
def test_a_stride_outside_the_context_is_refused(stride):
    with pytest.raises(InputError, match=f"context_stride is {stride}; it must be between 1 and max_length = 5"):
        context_starts(TINY, np.array([0]), 5, stride)


@pytest.mark.parametrize(("max_length", "stride"), [(1, 1), (5, 1), (5, 2), (5, 5), (7, 4), (50, 1), (50, 20)])
def test_windows_read_what_the_rule_says_and_yield_exactly_the_prefixes(sequences, max_length, stride):
    rng = np.random.default_rng(5)
    everything = np.arange(len(sequences.items))
    for prefixes in (sequences.prefixes("train"), everything, everything[rng.random(len(everything)) < 0.6]):
        with unchanged(sequences, prefixes):
            plans = [f(sequences, prefixes, max_length, stride) for f in (shared_windows, single_windows)]
        for plan in plans:
            assert plan.prefixes().tolist() == prefixes.tolist()
            assert np.all(plan.length <= max_length)
            assert np.all((plan.outputs >= 1) & (plan.outputs <= plan.length))
            read = [
                sequences.items[start : start + length - back].tolist()
                for start, length, outputs in zip(plan.start, plan.length, plan.outputs, strict=True)
                for back in range(outputs - 1, -1, -1)
            ]
            assert read == [history_of(sequences, p, max_length, stride) for p in prefixes]
        assert np.all(plans[1].outputs == 1)


def test_neighbouring_prefixes_share_a_window():
    sequences = random_sequences([12, 4], n_items=5)
    windows = shared_windows(sequences, np.array([0, 1, 2, 4, 5, 6, 7, 8, 9, 12, 13]), 6, 4)
    # 0-2 together; a gap; 4-5; from 6 on (7 items) the context starts at 4; 8-9 still do; then the second user.
    assert windows.start.tolist() == [0, 0, 4, 12]
    assert windows.length.tolist() == [3, 6, 6, 2]
    assert windows.outputs.tolist() == [3, 2, 4, 2]


def test_windows_are_taken_and_joined_in_order():
    one = Windows(np.array([0, 5]), np.array([3, 4]), np.array([2, 1]))
    other = Windows(np.array([9]), np.array([2]), np.array([2]))
    joined = Windows.join(one, other)
    assert len(joined) == 3
    assert joined.prefixes().tolist() == [1, 2, 8, 9, 10]
    assert joined.take(np.array([2, 0])).prefixes().tolist() == [9, 10, 1, 2]


def test_check_splits_passes_on_what_is_split_here(sequences):
    passed, counts = check_splits(sequences)
    assert passed
    for split in ("train", "valid", "test"):
        assert counts[f"{split}_targets"] == len(sequences.prefixes(split))


def test_check_splits_counts_the_faults():
    class Leaking(UserSequences):
        def prefixes(self, split):
            return {"train": np.array([0, 1, 2]), "valid": np.array([2]), "test": np.array([3, 4])}[split]

    times = [np.array([1, 2, 3, 5, 4]), np.array([7, 8, 9])]
    leaking = Leaking(np.array([0, 5, 8]), np.zeros(8, dtype=np.int64), np.concatenate(times), 1)
    passed, counts = check_splits(Leaking(leaking.offsets, leaking.items, leaking.timestamps, 1))
    assert not passed
    # Position 3 is a target of training and validation; 5, behind prefix 4, is the next user's; 5 precedes 4 in time.
    assert counts["shared_targets"] == 1
    assert counts["targets_of_another_user"] == 1
    assert counts["late_targets"] >= 1
    assert counts["out_of_time"] == 1
