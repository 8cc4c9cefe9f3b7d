import numpy as np
import pytest
import torch
from callers_data import unchanged
from raserec_toys import random_sequences

from rarec.data.sequences import Windows, shared_windows, single_windows
from rarec.raserec.packing import fill_rows, pack_rows, pack_steps

NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def sequences():
    return random_sequences([4, 1, 13, 60, 3, 9], n_items=20, seed=1)


def mixed_windows(sequences):
    """Windows of every kind: whole ones, long ones, partners of which one position is wanted, single items."""
    whole = shared_windows(sequences, np.arange(len(sequences.items)), 50, 10)
    partners = single_windows(sequences, np.array([17, 4, 0, 30, 77, 17, 60]), 50, 10)
    return Windows.join(whole, partners)


def test_fill_rows_by_hand():
    # 7 fits first and leaves 3: the 3. Then 6 + 4, then 4 + 4 and the 1.
    row, place, rows = fill_rows(np.array([4, 7, 1, 4, 3, 6, 4]), 10)
    assert rows == 3
    assert row.tolist() == [1, 0, 2, 2, 0, 1, 2]
    assert place.tolist() == [6, 0, 8, 0, 7, 0, 4]


@pytest.mark.parametrize("seed", range(5))
def test_fill_rows_never_overlaps_and_wastes_little(seed):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.12, 400), 50)
    with unchanged(lengths):
        row, place, rows = fill_rows(lengths, 50)
    taken = np.zeros((rows, 50), dtype=int)
    for r, p, n in zip(row, place, lengths, strict=True):
        assert p + n <= 50
        taken[r, p : p + n] += 1
    assert taken.max() == 1
    assert rows <= np.ceil(lengths.sum() / 50 * 1.05)


def test_pack_rows_by_hand():
    sequences = random_sequences([7, 5], n_items=50)
    items = sequences.items
    windows = Windows(np.array([0, 7, 3, 1]), np.array([7, 3, 1, 3]), np.array([2, 1, 1, 3]))
    with unchanged(sequences, windows):
        batch = pack_rows(sequences, windows)
    assert batch.items.shape == (1, 32)
    # The longest first; of equal length in the order given; padding at the end.
    assert batch.items[0].tolist() == [*items[:7], *items[7:10], *items[1:4], items[3], *[0] * 18]
    assert batch.positions[0].tolist() == [*range(7), 0, 1, 2, 0, 1, 2, 0, *[0] * 18]
    assert batch.first[0].tolist() == [*[0] * 7, *[7] * 3, *[10] * 3, 13, *range(14, 32)]
    assert batch.last[0].tolist() == list(range(32))
    assert batch.outputs.tolist() == [5, 6, 9, 13, 10, 11, 12]  # in the order of the windows as given


def test_pack_rows_with_a_closing_item_by_hand():
    sequences = random_sequences([7, 5], n_items=50)
    items = sequences.items
    windows = Windows(np.array([0, 7, 3]), np.array([6, 1, 2]), np.array([1, 1, 1]))
    with unchanged(sequences, windows):
        batch = pack_rows(sequences, windows, causal=False, closing_item=50)
    assert batch.items[0, :13].tolist() == [*items[:6], 50, items[3], items[4], 50, items[7], 50, 0]
    assert batch.first[0, :13].tolist() == [*[0] * 7, *[7] * 3, *[10] * 2, 12]
    assert batch.last[0, :13].tolist() == [*[6] * 7, *[9] * 3, *[11] * 2, 12]
    assert batch.outputs.tolist() == [6, 11, 9]  # the closing tokens


def test_pack_steps_by_hand():
    sequences = random_sequences([7, 5], n_items=50)
    items = sequences.items
    windows = Windows(np.array([7, 0, 3]), np.array([2, 4, 1]), np.array([1, 3, 1]))
    with unchanged(sequences, windows):
        batch = pack_steps(sequences, windows)
    # First items of all three windows, longest first; then second items of two; then the longest alone.
    assert batch.items.tolist() == [items[0], items[7], items[3], items[1], items[8], items[2], items[3]]
    assert batch.windows.tolist() == [3, 2, 1, 1]
    assert batch.outputs.tolist() == [4, 3, 5, 6, 2]


@pytest.mark.parametrize("pack", [pack_rows, pack_steps])
def test_every_output_is_the_prefix_it_stands_for(sequences, pack):
    windows = mixed_windows(sequences)
    batch = pack(sequences, windows)
    assert np.array_equal(batch.items.flatten()[batch.outputs].numpy(), sequences.items[windows.prefixes()])
    if pack is pack_rows:
        place = windows.prefixes() - np.repeat(windows.start, windows.outputs)
        assert np.array_equal(batch.positions.flatten()[batch.outputs].numpy(), place)


def test_a_token_sees_its_own_window_up_to_itself(sequences):
    windows = mixed_windows(sequences)
    batch = pack_rows(sequences, windows)
    width = batch.items.shape[1]
    assert width == 50  # the longest window
    starts = np.repeat(windows.start, windows.outputs)
    for token, start, prefix in zip(batch.outputs.tolist(), starts, windows.prefixes(), strict=True):
        row, place = divmod(token, width)
        seen = batch.items[row, batch.first[row, place] : batch.last[row, place] + 1]
        assert np.array_equal(seen.numpy(), sequences.items[start : prefix + 1])


def test_an_empty_batch(sequences):
    rows = pack_rows(sequences, Windows(NOTHING, NOTHING, NOTHING))
    assert rows.items.shape == rows.first.shape == (0, 32)
    assert len(rows.outputs) == 0
    steps = pack_steps(sequences, Windows(NOTHING, NOTHING, NOTHING))
    assert len(steps.items) == len(steps.windows) == len(steps.outputs) == 0


def test_device_moves_all_but_the_step_counts(sequences):
    windows = mixed_windows(sequences)
    meta = torch.device("meta")
    moved = pack_rows(sequences, windows).to(meta)
    assert {value.device for value in vars(moved).values()} == {meta}
    steps = pack_steps(sequences, windows).to(meta)
    assert (steps.items.device, steps.outputs.device, steps.windows.device.type) == (meta, meta, "cpu")
