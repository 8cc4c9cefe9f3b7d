import math

import pytest
import torch
from callers_data import unchanged
from torch.nn import functional as F

from rarec.training import softmax
from rarec.training.softmax import full_softmax_loss

M, ITEMS, DIM = 23, 17, 5


def inputs(dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    h = scale * torch.randn(M, DIM, generator=generator, dtype=dtype)
    items = torch.randn(ITEMS, DIM, generator=generator, dtype=dtype)
    return h, items, torch.randint(0, ITEMS, (M,), generator=generator)


def test_full_softmax_by_hand():
    """Two items with scores log 3 and 0: the first has probability 3/4."""
    h, items = torch.tensor([[math.log(3.0)]] * 2), torch.tensor([[1.0], [0.0]])
    loss = full_softmax_loss(h, items, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.tensor(math.log(4 / 3) + math.log(4)))


@pytest.mark.parametrize("block_rows", [1, 7, 23, 100])
@pytest.mark.parametrize(("grad_h", "grad_items"), [(True, True), (True, False), (False, True)])
def test_full_softmax_equals_cross_entropy(monkeypatch, block_rows, grad_h, grad_items):
    monkeypatch.setattr(softmax, "_BLOCK_ELEMENTS", {"cpu": block_rows * ITEMS})
    h, items, targets = inputs()
    h.requires_grad_(grad_h)
    items.requires_grad_(grad_items)
    wanted = [x for x in (h, items) if x.requires_grad]
    with unchanged(h, items, targets):
        loss = full_softmax_loss(h, items, targets)
        got = torch.autograd.grad(3 * loss, wanted)
    expected = F.cross_entropy(h @ items.T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for one, other in zip(got, torch.autograd.grad(3 * expected, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_full_softmax_in_single_precision_with_large_scores():
    h, items, targets = inputs(torch.float32, scale=8.0)
    h.requires_grad_()
    loss, expected = full_softmax_loss(h, items, targets), F.cross_entropy(h @ items.T, targets, reduction="sum")
    assert float(expected.detach()) / M > 10  # scores far from uniform
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, h)[0] for x in (loss, expected)), rtol=1e-4, atol=1e-5)


def test_full_softmax_of_an_impossible_target_stays_finite_and_keeps_its_gradient():
    h, items = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.0], [500.0]], requires_grad=True)
    loss = full_softmax_loss(h, items, torch.tensor([0]))
    assert 87 < float(loss.detach()) < 500  # probability exp(-500) is read as the smallest float
    grad_h, grad_items = torch.autograd.grad(loss, (h, items))
    assert grad_h.tolist() == [[500.0]]
    assert grad_items.tolist() == [[-1.0], [1.0]]


def test_full_softmax_of_broken_weights_is_not_finite():
    h, items, targets = inputs(torch.float32)
    h[3, 2] = float("nan")
    assert not torch.isfinite(full_softmax_loss(h, items, targets))


def test_full_softmax_of_no_rows():
    h, items, targets = inputs()
    items.requires_grad_()
    loss = full_softmax_loss(h[:0], items, targets[:0])
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, items)[0].any()


def test_full_softmax_gradcheck():
    h, items, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, items: full_softmax_loss(h, items, targets), (h.requires_grad_(), items.requires_grad_())
    )
