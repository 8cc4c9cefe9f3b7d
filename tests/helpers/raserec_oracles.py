"""The slow, obvious way: every history read on its own, right-padded, with explicit masks and literal formulas."""

import math

import torch
from raserec_toys import history_of
from torch import Tensor
from torch.nn import functional as F

from rarec.raserec.encoders import BERT4Rec, GRU4Rec, SequenceEncoder


def plain_representations(encoder: SequenceEncoder, sequences, prefixes) -> Tensor:
    """(P, D), differentiable, without dropout."""
    settings = encoder.settings
    histories = [history_of(sequences, p, settings.max_length, settings.context_stride) for p in prefixes]
    read = _plain_gru if isinstance(encoder, GRU4Rec) else _plain_transformer
    return torch.stack([read(encoder, history) for history in histories])


def _plain_transformer(encoder, history: list[int]) -> Tensor:
    """A history padded on the right to the maximum length; causal, or with a mask token behind it."""
    dim, heads = encoder.settings.dim, encoder.settings.heads
    embeddings, length, room = encoder.item_embedding, len(history), encoder.settings.max_length
    tokens = list(history)
    if bidirectional := isinstance(encoder, BERT4Rec):
        embeddings = torch.cat([embeddings, encoder.mask_embedding])
        tokens, length, room = [*tokens, len(encoder.item_embedding)], length + 1, room + 1
    padded = torch.tensor(tokens + [0] * (room - length))
    x = embeddings[padded] + encoder.position_embedding[:room]
    x = F.layer_norm(x, (dim,), encoder.norm.weight, encoder.norm.bias, 1e-12)
    place = torch.arange(room)
    hidden = (place >= length).expand(room, room) if bidirectional else place > place[:, None]
    for layer in encoder.layers:
        attention = layer.attention
        q, k, v = attention.qkv(x).split(dim, 1)
        mixed = []
        for head in range(heads):
            columns = slice(head * dim // heads, (head + 1) * dim // heads)
            scores = q[:, columns] @ k[:, columns].T / math.sqrt(dim // heads)
            mixed.append(scores.masked_fill(hidden, -torch.inf).softmax(1) @ v[:, columns])
        x = x + attention.out(torch.cat(mixed, 1))
        x = F.layer_norm(x, (dim,), layer.attention_norm.weight, layer.attention_norm.bias, 1e-12)
        x = x + layer.down(F.gelu(layer.up(x)))
        x = F.layer_norm(x, (dim,), layer.norm.weight, layer.norm.bias, 1e-12)
    return x[length - 1]


def _plain_gru(encoder, history: list[int]) -> Tensor:
    """The cell's equations, step by step."""
    inputs = [encoder.item_embedding[item] for item in history]
    for layer in range(encoder.settings.layers):
        w_in, w_state, b_in, b_state = (
            getattr(encoder.gru, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        state = torch.zeros_like(w_state[0])
        outputs = []
        for x in inputs:
            r_in, z_in, n_in = (w_in @ x + b_in).chunk(3)
            r_state, z_state, n_state = (w_state @ state + b_state).chunk(3)
            reset, update = torch.sigmoid(r_in + r_state), torch.sigmoid(z_in + z_state)
            state = (1 - update) * torch.tanh(n_in + reset * n_state) + update * state
            outputs.append(state)
        inputs = outputs
    return encoder.project(inputs[-1])


def literal_info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """-log exp(partner) / sum of exp(all others), summed over the 2B rows and halved."""
    rows, count = torch.cat([first, second]), len(first)
    total = first.new_zeros(())
    for i in range(2 * count):
        others = [j for j in range(2 * count) if j != i]
        scores = {j: rows[i] @ rows[j] / temperature for j in others}
        partner = scores[(i + count) % (2 * count)]
        total = total + torch.logsumexp(torch.stack(list(scores.values())), 0) - partner
    return total / 2


def plain_pretraining_loss(encoder, sequences, prefixes, partners, weight: float, temperature: float) -> Tensor:
    """Summed stage-1 loss from separately read histories."""
    own = plain_representations(encoder, sequences, prefixes)
    targets = torch.from_numpy(sequences.items[prefixes + 1])
    loss = F.cross_entropy(own @ encoder.item_embedding.T, targets, reduction="sum")
    other = plain_representations(encoder, sequences, partners)
    return loss + weight * literal_info_nce(own, other, temperature)


def gradients(loss: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter by name; zero where the loss does not depend on it."""
    names, values = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, values, allow_unused=True)
    return {n: torch.zeros_like(v) if g is None else g for n, v, g in zip(names, values, grads, strict=True)}
