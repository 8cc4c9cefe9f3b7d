import itertools
import math

import pytest
import torch
from callers_data import unchanged
from raserec_oracles import literal_info_nce

from rarec.raserec.losses import info_nce_loss


def views(count=6):
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(count, 5, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    return draw(), draw()


def test_info_nce_by_hand():
    """One pair: no negatives, no loss. Two orthogonal pairs: each row scores 1 at its partner and 0 at two others."""
    first = torch.eye(2, dtype=torch.float64)
    assert float(info_nce_loss(first[:1], first[:1], 1.0)) == pytest.approx(0)
    assert float(info_nce_loss(first, first, 1.0)) == pytest.approx(4 * math.log(1 + 2 / math.e) / 2)
    assert float(info_nce_loss(first, first, 0.5)) == pytest.approx(4 * math.log(1 + 2 / math.e**2) / 2)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_info_nce_equals_the_literal_double_loop(temperature):
    first, second = views()
    with unchanged(first, second):
        loss = info_nce_loss(first, second, temperature)
    expected = literal_info_nce(first, second, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(loss, (first, second)), torch.autograd.grad(expected, (first, second)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cuts", [(0, 6), (0, 2, 6), (0, 1, 1, 4, 6)], ids=str)
def test_shards_of_info_nce_sum_to_the_whole(cuts):
    first, second = views()
    whole = info_nce_loss(first, second, 0.5)
    shards = sum(info_nce_loss(first[a:b], second[a:b], 0.5, first, second, a) for a, b in itertools.pairwise(cuts))
    torch.testing.assert_close(shards, whole, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(shards, (first, second)), torch.autograd.grad(whole, (first, second)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
