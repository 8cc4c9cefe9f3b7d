import math

import pytest
import torch
from callers_data import unchanged
from raserec_oracles import gradients
from torch.nn import functional as F

from rarec.errors import InputError
from rarec.raserec.retrieval_module import CrossAttention, RetrievalAugmentedModule, load_module, save_module
from rarec.raserec.settings import FinetuneSettings
from rarec.training.dropout import DropoutBits

B, K, DIM, HEADS, N = 6, 5, 8, 2, 12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_random_weights(module):
    for number, (name, parameter) in enumerate(module.named_parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=number) + (1.0 if name.endswith("norm.weight") else 0.0)
    return module


def new_attention(dropout=0.0):
    return with_random_weights(CrossAttention(DIM, HEADS, dropout, DropoutBits(1)).double())


def new_module(dropout=0.0, **changes):
    settings = FinetuneSettings(memories=K, heads=HEADS, inner_dim=10, dropout=dropout, **changes)
    return with_random_weights(RetrievalAugmentedModule(DIM, settings, DropoutBits(2)).double())


def naive_attention(attention, query, keys, values, present, key_bias=0.0):
    """Every memory projected, each query and head on its own; a query without memories mixes nothing."""
    width = DIM // HEADS
    rows = []
    for b in range(len(query)):
        heads = []
        k = [attention.key.weight @ keys[b, m] + key_bias for m in range(keys.shape[1])]
        v = [attention.value(values[b, m]) for m in range(keys.shape[1])]
        q = attention.query(query[b])
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            there = [m for m in range(keys.shape[1]) if present[b, m]]
            mixed = q.new_zeros(width)
            if there:
                scores = torch.stack([q[part] @ k[m][part] / math.sqrt(width) for m in there])
                for weight, m in zip(scores.softmax(0), there, strict=True):
                    mixed = mixed + weight * v[m][part]
            heads.append(mixed)
        rows.append(attention.out(torch.cat(heads)))
    return torch.stack(rows)


def naive_module(module, query, representations, next_items, users, items):
    """One query after the other; without any memory the query itself."""
    alpha, beta = module.settings.alpha, module.settings.beta
    rows = []
    for b in range(len(query)):
        retrieved, found = torch.zeros(DIM, dtype=query.dtype), False
        channels = [
            (module.channel1, users, beta, representations, next_items),
            (module.channel2, items, 1 - beta, next_items, representations),
        ]
        for channel, ids, share, keys, values in channels:
            if channel is None:
                continue
            real = [i for i in ids[b].tolist() if i >= 0]
            found = found or bool(real)
            key, value = keys[real][None], values[real][None]
            there = torch.ones(1, len(real), dtype=torch.bool)
            x = naive_attention(channel.first, query[b : b + 1], key, value, there)
            x = channel.norm(x + channel.down(F.gelu(channel.up(x))))
            retrieved = retrieved + share * naive_attention(channel.second, x, key, value, there)[0]
        rows.append(alpha * query[b] + (1 - alpha) * retrieved if found else query[b])
    return torch.stack(rows)


PRESENT = torch.tensor(
    [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
).bool()


def test_cross_attention_equals_projecting_every_memory():
    attention = new_attention()
    inputs = [normal(B, DIM, seed=1), normal(B, K, DIM, seed=2), normal(B, K, DIM, seed=3)]
    inputs = [x.requires_grad_() for x in inputs]
    with unchanged(inputs, PRESENT, attention):
        out = attention(*inputs, PRESENT)
    expected = naive_attention(attention, *inputs, PRESENT)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    biased = naive_attention(attention, *inputs, PRESENT, key_bias=normal(DIM, seed=4))
    torch.testing.assert_close(biased, expected, rtol=1e-10, atol=1e-12)  # which is why there is none
    direction = normal(B, DIM, seed=5)
    loss, expected_loss = (out * direction).sum(), (expected * direction).sum()
    for one, other in zip(
        torch.autograd.grad(loss, inputs, retain_graph=True),
        torch.autograd.grad(expected_loss, inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    got, wanted = gradients(loss, attention), gradients(expected_loss, attention)
    for name in wanted:
        assert wanted[name].abs().max() > 1e-3
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-11)


def test_dropout_falls_on_weights_and_not_on_the_value_bias_alone():
    """With dropout the value bias is weighted by what is left of the weights, as if every memory were projected."""
    attention = new_attention(dropout=0.5).train()
    query, keys, values = normal(B, DIM, seed=1), normal(B, K, DIM, seed=2), normal(B, K, DIM, seed=3)
    attention.dropout.bits.seed(8)
    mask = attention.dropout.mask((B, HEADS, K), query.device)
    attention.dropout.bits.seed(8)
    out = attention(query, keys, values, PRESENT)
    width = DIM // HEADS
    split = lambda x: x.unflatten(-1, (HEADS, width)).transpose(-2, -3)  # noqa: E731
    q = attention.query(query).view(B, HEADS, 1, width)
    k, v = split(F.linear(keys, attention.key.weight)), split(attention.value(values))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(width)).masked_fill(~PRESENT[:, None, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num() * mask[:, :, None]
    expected = attention.out((weights @ v).transpose(1, 2).reshape(B, DIM))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


def test_expectation_under_dropout_is_the_output_without():
    attention = new_attention(dropout=0.5)
    query, keys, values = normal(1, DIM, seed=1), normal(1, K, DIM, seed=2), normal(1, K, DIM, seed=3)
    there = torch.ones(1, K, dtype=torch.bool)
    many = 20_000
    attention.train()
    out = attention(
        query.expand(many, -1), keys.expand(many, -1, -1), values.expand(many, -1, -1), there.expand(many, -1)
    )
    attention.eval()
    exact = attention(query, keys, values, there)
    error = out.std(0) / many**0.5
    assert torch.all((out.mean(0) - exact[0]).abs() < 5 * error)
    assert torch.all(out.std(0) > 0.01)


USERS = torch.tensor([[0, 1, 2, 3, 4], [5, 6, -1, -1, -1], [-1, 7, -1, 8, 11], [-1] * 5, [-1, -1, -1, -1, 9], [-1] * 5])
ITEMS = torch.tensor([[4, 3, 2, 1, 0], [-1] * 5, [9, 9, 10, -1, -1], [-1] * 5, [11, 0, 5, 6, 7], [2, -1, -1, -1, -1]])


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.5, 0.0), (0.3, 0.8), (0.0, 0.5)])
def test_module_equals_one_query_after_the_other(alpha, beta):
    module = new_module(alpha=alpha, beta=beta)
    assert (module.channel1 is None) == (beta == 0)
    assert (module.channel2 is None) == (beta == 1)
    query = normal(B, DIM, seed=1).requires_grad_()
    memories = normal(N, DIM, seed=2), normal(N, DIM, seed=3)
    users, items = USERS if beta > 0 else None, ITEMS if beta < 1 else None
    with unchanged(query, memories, USERS, ITEMS, module):
        out = module(query, *memories, users, items)
    expected = naive_module(module, query, *memories, users, items)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    direction = normal(B, DIM, seed=5)
    loss, expected_loss = (out * direction).sum(), (expected * direction).sum()
    torch.testing.assert_close(
        *(torch.autograd.grad(x, query, retain_graph=True)[0] for x in (loss, expected_loss)), rtol=1e-9, atol=1e-11
    )
    got, wanted = gradients(loss, module), gradients(expected_loss, module)
    for name in wanted:
        assert wanted[name].abs().max() > 1e-6, name
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_a_query_without_memories_is_its_own_answer_with_finite_gradients():
    module = new_module(beta=0.5, dropout=0.5).train()
    query = normal(B, DIM, seed=1).requires_grad_()
    nothing = torch.full((B, K), -1)
    memories = normal(N, DIM, seed=2), normal(N, DIM, seed=3)
    out = module(query, *memories, nothing, nothing)
    assert torch.equal(out, query)
    assert torch.equal(torch.autograd.grad(out.sum(), query, retain_graph=True)[0], torch.ones_like(query))
    for name, value in gradients(out.sum(), module).items():
        assert torch.isfinite(value).all(), name
        assert not value.any(), name


def test_absent_memories_never_matter():
    """Id -1 is no memory: neither the first nor the last of the bank leaks in, nor a value that is not a number."""
    module = new_module(beta=0.5).eval()
    query, representations, next_items = normal(B, DIM, seed=1), normal(N, DIM, seed=2), normal(N, DIM, seed=3)
    users, items = torch.tensor([[5, -1, 6, -1, -1]] * B), torch.tensor([[-1, 7, -1, -1, -1]] * B)
    before = module(query, representations, next_items, users, items)
    for table in (representations, next_items):
        table[0] += 100
        table[-1] -= 100
    assert torch.equal(module(query, representations, next_items, users, items), before)
    longer = torch.cat([users, torch.full((B, 9), -1)], 1)
    torch.testing.assert_close(module(query, representations, next_items, longer, items), before)


def test_order_of_the_memories_does_not_matter():
    module = new_module(beta=0.5).eval()
    query, memories = normal(B, DIM, seed=1), (normal(N, DIM, seed=2), normal(N, DIM, seed=3))
    torch.testing.assert_close(
        module(query, *memories, USERS.flip(1), ITEMS.flip(1)), module(query, *memories, USERS, ITEMS)
    )


def test_the_channels_hold_different_memories():
    module = new_module(beta=0.5, alpha=0.0).eval()
    query, memories = normal(B, DIM, seed=1), (normal(N, DIM, seed=2), normal(N, DIM, seed=3))
    out = module(query, *memories, USERS, ITEMS)
    for users, items in ((USERS, ITEMS.roll(1, 0)), (USERS.roll(1, 0), ITEMS), (ITEMS, USERS)):
        assert not torch.allclose(module(query, *memories, users, items)[4], out[4])


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="heads = 3 does not divide the encoder's dim = 8; change heads"):
        RetrievalAugmentedModule(8, FinetuneSettings(heads=3), DropoutBits())


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_saved_module_comes_back_for_its_own_encoder_only(tmp_path, beta):
    module = new_module(beta=beta, dropout=0.4).float().eval()
    with unchanged(module):
        save_module(module, DIM, "abc123", tmp_path)
    back = load_module(tmp_path, "abc123")
    assert back.settings == module.settings
    assert not back.training
    query, memories = normal(B, DIM, seed=1).float(), (normal(N, DIM, seed=2).float(), normal(N, DIM, seed=3).float())
    users, items = USERS if beta > 0 else None, ITEMS if beta < 1 else None
    assert torch.equal(back(query, *memories, users, items), module(query, *memories, users, items))
    with pytest.raises(InputError, match="tuned on encoder abc123 and cannot serve encoder other; materialise"):
        load_module(tmp_path, "other")


def test_attending_to_itself_reads_no_memory():
    """As if every memory were the query: the control of retrieval, with the same parameters."""
    for beta in (1.0, 0.4):
        control, module = (new_module(beta=beta, attend_to=what) for what in ("itself", "similar"))
        query, ids = normal(B, DIM), torch.zeros(B, K, dtype=torch.int64)
        got = control(query, normal(N, DIM, seed=1), normal(N, DIM, seed=2), ids, ids)
        copies = torch.arange(B)[:, None].expand(B, K)
        assert torch.allclose(got, module(query, query, query, copies, copies))
        assert torch.equal(got, control(query, normal(N, DIM, seed=3), normal(N, DIM, seed=4), ids, ids))
        assert sum(p.numel() for p in control.parameters()) == sum(p.numel() for p in module.parameters())
