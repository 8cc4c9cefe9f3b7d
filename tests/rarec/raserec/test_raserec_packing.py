import numpy as np
import pytest
import torch
from raserec_toys import random_sequences, unchanged

from rarec.data.sequences import Windows, shared_windows, single_windows
from rarec.raserec.attention import AttentionBlock, attention_blocks, packed_attention
from rarec.raserec.packing import Bucket, pack, padded_lengths
from rarec.training.dropout import Dropout, DropoutBits

HEADS, DIM = 2, 6


@pytest.fixture(scope="module")
def sequences():
    return random_sequences([4, 1, 13, 60, 3, 9], n_items=20, seed=1)


def mixed_windows(sequences):
    """Windows of every kind: whole ones, long ones, partners of which one position is wanted, single items."""
    whole = shared_windows(sequences, np.arange(len(sequences.items)), 50, 10)
    partners = single_windows(sequences, np.array([17, 4, 0, 30, 77, 17, 60]), 50, 10)
    return Windows.join(whole, partners)


def test_padded_lengths_climb_the_ladder():
    lengths = np.arange(1, 95)
    padded = padded_lengths(lengths)
    assert padded[:12].tolist() == [1, 2, 3, 4, 5, 6, 8, 8, 10, 10, 12, 12]
    assert padded_lengths(np.array([39, 40, 41, 50, 51, 94])).tolist() == [40, 40, 50, 50, 60, 100]
    assert np.all(padded >= lengths)
    assert np.all(padded - lengths < 10)
    assert np.all(np.diff(padded) >= 0)


def test_pack_by_hand():
    sequences = random_sequences([7, 5], n_items=50)
    items = sequences.items
    windows = Windows(np.array([0, 7, 3, 1]), np.array([7, 3, 1, 3]), np.array([2, 1, 1, 3]))
    with unchanged(sequences, windows):
        batch = pack(sequences, windows)
    # Sorted by padded length (1, 3, 3, 8); of equal length the window with one wanted position comes last.
    assert batch.buckets == (Bucket(1, 1, 0), Bucket(3, 1, 1), Bucket(8, 1, 0))
    assert batch.items.tolist() == [*items[3:4], *items[1:4], *items[7:10], *items[:7], 0]
    assert batch.positions.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0]
    assert batch.lengths.tolist() == [1, 3, 3, 7]
    assert batch.query_rows.tolist() == [0, 1, 2, 3, 6, *range(7, 15)]
    assert batch.outputs.tolist() == [10, 11, 4, 0, 1, 2, 3]  # in the order of the windows as given


def test_pack_with_a_closing_item_by_hand():
    sequences = random_sequences([7, 5], n_items=50)
    items = sequences.items
    windows = Windows(np.array([0, 7, 3]), np.array([6, 1, 2]), np.array([1, 1, 1]))
    with unchanged(sequences, windows):
        batch = pack(sequences, windows, closing_item=50)
    assert batch.items.tolist() == [items[7], 50, items[3], items[4], 50, *items[:6], 50, 0]
    assert batch.lengths.tolist() == [2, 3, 7]
    assert batch.query_rows[batch.outputs].tolist() == [11, 1, 4]  # the closing tokens
    assert batch.buckets == (Bucket(2, 0, 1), Bucket(3, 0, 1), Bucket(8, 0, 1))


def test_every_wanted_row_is_the_prefix_it_stands_for(sequences):
    windows = mixed_windows(sequences)
    batch = pack(sequences, windows)
    wanted = windows.prefixes()
    token = batch.query_rows[batch.outputs]
    assert len(wanted) == len(token)
    assert np.array_equal(batch.items[token].numpy(), sequences.items[wanted])
    start = np.repeat(windows.start, windows.outputs)
    assert np.array_equal(batch.positions[token].numpy(), wanted - start)
    assert sum((b.full + b.lone) * b.length for b in batch.buckets) == len(batch.items)


def test_an_empty_batch(sequences):
    nothing = np.zeros(0, dtype=np.int64)
    batch = pack(sequences, Windows(nothing, nothing, nothing))
    assert batch.buckets == ()
    assert len(batch.items) == len(batch.query_rows) == len(batch.outputs) == len(batch.lengths) == 0


def random_inputs(batch, final, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, rows = len(batch.items), len(batch.query_rows) if final else len(batch.items)
    q = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    kv = torch.randn(tokens, 2 * DIM, generator=generator, dtype=torch.float64)
    return q.requires_grad_(), kv.requires_grad_()


def windows_of(batch, final):
    """(tokens of the real window, its query rows, their places) window by window, in the order of the token axis."""
    token = row = 0
    lengths = iter(batch.lengths.tolist())
    for bucket in batch.buckets:
        for number in range(bucket.full + bucket.lone):
            real = next(lengths)
            if final and number >= bucket.full:
                places, taken = [real - 1], 1
            else:
                places, taken = list(range(real)), bucket.length
            yield slice(token, token + real), slice(row, row + len(places)), places
            token, row = token + bucket.length, row + taken


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("final", [False, True], ids=["all rows", "wanted rows"])
def test_packed_attention_equals_torch_on_every_window(sequences, final, causal):
    windows = mixed_windows(sequences)
    if not causal:  # as BERT4Rec reads: one prefix a window
        windows = single_windows(sequences, windows.prefixes(), 50, 10)
    batch = pack(sequences, windows)
    q, kv = random_inputs(batch, final)
    with unchanged(q, kv, batch):
        blocks = attention_blocks(batch, final, causal, Dropout(0.0, DropoutBits()), HEADS)
        out = packed_attention(q, kv, blocks, HEADS)
    loss, expected_loss = out.new_zeros(()), out.new_zeros(())
    direction = torch.linspace(-1, 2, DIM, dtype=torch.float64)
    seen = 0
    for tokens, rows, places in windows_of(batch, final):
        key, value = (part.view(-1, HEADS, DIM // HEADS).transpose(0, 1) for part in kv[tokens].split(DIM, 1))
        query = q[rows].view(-1, HEADS, DIM // HEADS).transpose(0, 1)
        visible = torch.ones(len(places), key.shape[1], dtype=torch.bool)
        if causal:
            visible = torch.arange(key.shape[1]) <= torch.tensor(places)[:, None]
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        expected = expected.transpose(0, 1).reshape(-1, DIM)
        torch.testing.assert_close(out[rows], expected)
        loss = loss + (out[rows].sin() @ direction).sum()
        expected_loss = expected_loss + (expected.sin() @ direction).sum()
        seen += len(places)
    assert seen >= len(windows)
    assert torch.isfinite(out).all()
    for got, wanted in zip(
        torch.autograd.grad(loss, (q, kv)), torch.autograd.grad(expected_loss, (q, kv)), strict=True
    ):
        torch.testing.assert_close(got, wanted)
        assert wanted.abs().max() > 0.1


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_are_exact_in_double_precision(causal, p):
    sequences = random_sequences([5, 7, 2], n_items=9)
    windows = shared_windows(sequences, np.array([0, 1, 2, 4, 5, 6, 9, 12]), 7, 1)
    batch = pack(sequences, windows)
    assert {bucket.length for bucket in batch.buckets} >= {3, 5}  # windows that share a bucket and ones that do not
    assert any(bucket.lone for bucket in batch.buckets)
    dropout = Dropout(p, DropoutBits(4)).train()
    q, kv = random_inputs(batch, final=True)
    blocks = attention_blocks(batch, True, causal, dropout, HEADS)
    assert torch.autograd.gradcheck(lambda q, kv: packed_attention(q, kv, blocks, HEADS), (q, kv))


def test_dropout_falls_on_the_attention_weights():
    """A window of 3 keys, one query, weights of one third each; the mask drops the second key of head 2."""
    mask = torch.tensor([[[2.0, 2.0, 2.0]], [[2.0, 0.0, 2.0]]]).view(1, 2, 1, 3)
    q = torch.zeros(1, 4)
    kv = torch.arange(24.0).view(3, 8)
    out = packed_attention(q, kv, [AttentionBlock(1, 1, 3, None, mask)], 2)
    # Values of head 1: rows (4, 5), (12, 13), (20, 21); of head 2: (6, 7), (14, 15), (22, 23).
    torch.testing.assert_close(out, torch.tensor([[24.0, 26.0, 28 * 2 / 3, 20.0]]))


def test_an_item_behind_changes_nothing_under_causal_attention(sequences):
    batch = pack(sequences, mixed_windows(sequences))
    blocks = attention_blocks(batch, False, True, Dropout(0.0, DropoutBits()), HEADS)
    q, kv = random_inputs(batch, final=False)
    before = packed_attention(q, kv, blocks, HEADS).detach()
    for tokens, rows, places in windows_of(batch, final=False):
        changed = kv.detach().clone()
        changed[tokens.stop - 1] += 5.0
        after = packed_attention(q.detach(), changed, blocks, HEADS)
        assert torch.equal(after[rows][:-1], before[rows][:-1])
        assert not torch.equal(after[rows][-1], before[rows][-1])
        assert places[-1] == tokens.stop - tokens.start - 1
