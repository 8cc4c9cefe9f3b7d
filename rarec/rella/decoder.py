"""Llama's forward pass on a CPU, reduced to what scoring needs: two logits after each prompt.

The numbers equal those of `transformers` up to rounding, which spends most of a small model's time on passes over
memory. Here:

- Projections that read the same states are one product, and sums are part of the product before them.
- The first layer's queries, keys and values, which depend only on the token, are looked up.
- The last layer is computed only for the last place of each prompt.
- Queries and keys are rotated in place, as complex numbers.
- Batches are so small that their states stay in the processor's cache.

Shapes: B prompts of width l, T = B·l tokens, D width, H heads, S key and value heads, d width of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarec.rella.language_model import PaddedBatch
from rarec.training.engine import is_sharded

KINDS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"})
MOST_PARAMETERS = 200_000_000  # weights are copied; in larger models, products take all the time anyway
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class _Projection:
    """x · weight + bias, with a weight of shape (inputs, outputs)."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, *layers: Any) -> "_Projection":
        """Several linear layers as one, with their outputs side by side."""
        weights = [_weight(layer) for layer in layers]
        biases = [layer.bias for layer in layers]
        joined = None
        if any(bias is not None for bias in biases):
            joined = torch.cat(
                [
                    weight.new_zeros(len(weight)) if bias is None else bias
                    for weight, bias in zip(weights, biases, strict=True)
                ]
            )
        return cls(torch.cat(weights).T.contiguous(), joined)

    def outputs(self, start: int, end: int | None = None) -> "_Projection":
        """Only some of the outputs."""
        return _Projection(self.weight[:, start:end], None if self.bias is None else self.bias[start:end])

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the projection of ``x`` to ``total``."""
        total.addmm_(x, self.weight)
        if self.bias is not None:
            total += self.bias


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer, in the order in which they are used."""

    before: Tensor
    projected: _Projection  # queries, keys, values
    attended: _Projection
    between: Tensor
    gated: _Projection  # gate, up
    fed: _Projection


class CpuDecoder:
    """A copy of a small Llama's weights, arranged for `answer_logits`."""

    def __init__(self, model: Any, answers: list[int]):
        """See `cpu_decoder`, which checks that ``model`` is suitable."""
        settings, decoder = model.config, model.model
        self._dim = settings.hidden_size
        self._heads, self._shared = settings.num_attention_heads, settings.num_key_value_heads
        self._head_dim = decoder.layers[0].self_attn.head_dim
        self._epsilon = settings.rms_norm_eps
        self._rotary = decoder.rotary_emb
        self._layers = []
        for layer in decoder.layers:
            attention, feed = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    layer.input_layernorm.weight,
                    self._paired(_Projection.of(attention.q_proj, attention.k_proj, attention.v_proj)),
                    _Projection.of(attention.o_proj),
                    layer.post_attention_layernorm.weight,
                    _Projection.of(feed.gate_proj, feed.up_proj),
                    _Projection.of(feed.down_proj),
                )
            )
        self._embedding = decoder.embed_tokens.weight
        self._norm = decoder.norm.weight
        self._answers = model.lm_head.weight[answers].T
        first = self._layers[0]
        self._first = first.projected(self._normalised(self._embedding, first.before))

    def _paired(self, projected: _Projection) -> _Projection:
        """Reorder queries and keys so that the pairs that rotate together, i and i + d/2 of each head, are neighbours.

        The order is the same for both, so their inner products stay the same.
        """
        turned = (self._heads + self._shared) * self._head_dim
        order = torch.arange(projected.weight.shape[1])
        order[:turned] = order[:turned].view(-1, 2, self._head_dim // 2).transpose(1, 2).flatten()
        return _Projection(projected.weight[:, order], None if projected.bias is None else projected.bias[order])

    def _normalised(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self._dim,), weight, self._epsilon)

    def answer_logits(self, batch: PaddedBatch) -> Tensor:
        """(B, answers) logits after each prompt."""
        count, width = batch.tokens.shape
        tokens = batch.tokens.flatten()
        x = self._embedding.index_select(0, tokens)  # (T, D); much faster than [tokens]
        rotation = self._rotation(x, width)
        heads, shared = self._heads, self._shared
        for number, layer in enumerate(self._layers[:-1]):
            projected = (
                layer.projected(self._normalised(x, layer.before)) if number else self._first.index_select(0, tokens)
            )
            parts = projected.view(count, width, heads + 2 * shared, self._head_dim)  # (B, l, H + 2S, d)
            _rotate(parts[:, :, : heads + shared], rotation)
            q, k, v = (part.transpose(1, 2) for part in parts.split([heads, shared, shared], 2))  # (B, H or S, l, d)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != shared)
            self._finish(layer, x, attended.transpose(1, 2).reshape(len(x), -1))
        return self._last(x, batch, rotation)

    def _last(self, x: Tensor, batch: PaddedBatch, rotation: Tensor) -> Tensor:
        """The last layer, computed only for the last place of each prompt."""
        count, width = batch.tokens.shape
        layer, place = self._layers[-1], batch.lengths - 1
        split = self._heads * self._head_dim
        normalised = self._normalised(x, layer.before)
        parts = layer.projected.outputs(split)(normalised).view(count, width, 2 * self._shared, self._head_dim)
        _rotate(parts[:, :, : self._shared], rotation)
        k, v = (part.transpose(1, 2) for part in parts.split(self._shared, 2))  # (B, S, l, d) each
        rows = torch.arange(count) * width + place  # (B,) the last token of each prompt
        q = layer.projected.outputs(0, split)(normalised[rows]).view(count, 1, self._heads, self._head_dim)
        _rotate(q, rotation[0, place, None])
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=batch.mask[:, None, None], enable_gqa=self._heads != self._shared
        )
        x = x[rows]  # (B, D)
        self._finish(layer, x, attended.reshape(count, -1))
        return self._normalised(x, self._norm) @ self._answers

    def _finish(self, layer: _Layer, x: Tensor, attended: Tensor) -> None:
        """Add to the states ``x`` what a layer does after its attention."""
        layer.attended.add_to(x, attended)
        gate, up = layer.gated(self._normalised(x, layer.between)).chunk(2, -1)
        layer.fed.add_to(x, F.silu(gate).mul_(up))

    def _rotation(self, x: Tensor, width: int) -> Tensor:
        """(1, l, 1, d/2) complex numbers that rotate queries and keys at each place."""
        cosine, sine = self._rotary(x, torch.arange(width)[None])
        half = self._head_dim // 2
        return torch.complex(cosine[:, :, None, :half], sine[:, :, None, :half])


def cpu_decoder(model: Any, answers: list[int], longest: int) -> CpuDecoder | None:
    """The decoder for a model of transformers, with or without LoRA adapter; None if the model is not suitable.

    Args:
        answers: Tokens whose logits are needed.
        longest: Number of tokens of the longest prompt.
    """
    # A model with adapters from transformers' own `add_adapter` is itself the base.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(base).__name__ not in KINDS or getattr(base, "is_quantized", False):
        return None
    adapters = getattr(model, "peft_config", {}).values()
    layers = base.model.layers
    window = getattr(base.config, "sliding_window", None)
    parameters = list(base.parameters())
    fits = (
        not is_sharded(base)
        and base.config.hidden_act == "silu"
        and type(base.model.embed_tokens) is nn.Embedding
        and type(base.lm_head) is nn.Linear
        and base.lm_head.bias is None
        and all(adapter.peft_type == "LORA" and not adapter.use_dora for adapter in adapters)
        and all(adapter.bias == "none" and not adapter.modules_to_save for adapter in adapters)
        and base.model.rotary_emb.inv_freq.numel() == layers[0].self_attn.head_dim // 2
        and (window is None or window >= longest)
        and all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in parameters)
        and sum(parameter.numel() for parameter in parameters) <= MOST_PARAMETERS
    )
    return CpuDecoder(base, answers) if fits else None


def _weight(layer: Any) -> Tensor:
    """(outputs, inputs) weight of a linear layer, including its LoRA adapter."""
    if not hasattr(layer, "base_layer"):
        return layer.weight
    weight = layer.base_layer.weight
    if not layer.merged and not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = weight + layer.get_delta_weight(name)
    return weight


def _rotate(x: Tensor, rotation: Tensor) -> None:
    """Rotate neighbouring pairs of (..., d) in place."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(rotation)
