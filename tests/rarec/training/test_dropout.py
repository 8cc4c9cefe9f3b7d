import numpy as np
import pytest
import torch
from callers_data import unchanged

from rarec.training.dropout import Dropout, DropoutBits

BIG = torch.Size([400, 1000])


@pytest.mark.parametrize(("p", "dropped"), [(0.5, 128), (0.1, 26), (0.2, 51), (0.9, 230)])
def test_share_and_scale(p, dropped):
    """The drop probability is the nearest multiple of 1/256; the scale is its exact inverse."""
    mask = DropoutBits(1).scaled_mask(BIG, p)
    assert mask.shape == BIG
    assert mask.dtype == torch.float32
    scale = torch.tensor(256 / (256 - dropped))
    assert sorted(mask.unique().tolist()) == [0.0, float(scale)]
    share = dropped / 256
    spread = (share * (1 - share) / mask.numel()) ** 0.5
    assert abs(float((mask == 0).double().mean()) - share) < 5 * spread
    assert abs(float(mask.double().mean()) - 1) < 5 * spread / (1 - share)
    assert abs(share - p) <= 1 / 512


def test_one_half_doubles_exactly():
    x = torch.randn(50, 30)
    with unchanged(x):
        y = Dropout(0.5, DropoutBits(2)).train()(x)
    assert torch.equal(y[y != 0], (2 * x)[y != 0])
    assert 0.4 < float((y == 0).float().mean()) < 0.6


@pytest.mark.parametrize("p", [0.997, 0.999])
def test_almost_everything_may_be_dropped(p):
    mask = DropoutBits(1).scaled_mask(BIG, p)
    assert mask.max() == 256
    assert float(mask.mean()) == pytest.approx(1, abs=0.2)


def test_masks_repeat_by_seed_and_not_otherwise():
    bits = DropoutBits(5)
    first, second = (bits.scaled_mask(torch.Size([64]), 0.5) for _ in range(2))
    assert not torch.equal(first, second)
    bits.seed(5)
    assert torch.equal(bits.scaled_mask(torch.Size([64]), 0.5), first)
    masks = []
    for entropy in [(5,), (6,), (5, 1, 0), (5, 0, 1), (5, 1, 1)]:
        bits.seed(*entropy)
        masks.append(tuple(bits.scaled_mask(torch.Size([64]), 0.5).tolist()))
    assert len(set(masks)) == len(masks)  # epoch and rank change the stream
    torch.manual_seed(0)
    np.random.default_rng(0)
    bits.seed(5)
    assert torch.equal(bits.scaled_mask(torch.Size([64]), 0.5), first)  # no global generator takes part


def test_neighbouring_elements_are_independent():
    dropped = (DropoutBits(3).scaled_mask(torch.Size([80_000]), 0.5) == 0).double() - 0.5
    for lag in (1, 7, 8, 64):
        correlation = float((dropped[:-lag] * dropped[lag:]).mean()) * 4
        assert abs(correlation) < 5 / 80_000**0.5


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 0), (2, 3, 5)], ids=str)
def test_any_shape(shape):
    assert DropoutBits(1).scaled_mask(torch.Size(shape), 0.3).shape == shape


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.001, True)])
def test_identity_in_evaluation_and_without_dropout(p, training):
    x = torch.randn(4, 5)
    layer = Dropout(p, DropoutBits(1)).train(training)
    assert layer(x) is x
    assert layer.mask(x.shape, x.device) is None


def test_gradient_passes_where_nothing_was_dropped():
    x = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.5, DropoutBits(9)).train()(x)
    assert y.dtype == torch.float64
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, 2.0 * (y != 0))
