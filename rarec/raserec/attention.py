"""Self-attention over packed windows: one batched product a bucket, forward and backward written out.

A batch holds a dozen buckets of small matrices. Recording each product, mask and softmax in the autograd graph would
cost more than computing it, so the whole operation is one autograd function.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from rarec.raserec.packing import PackedWindows
from rarec.training.dropout import Dropout


@dataclass(frozen=True)
class AttentionBlock:
    """``n`` windows with ``queries`` query rows and ``length`` key rows each.

    Attributes:
        hidden: (l, l) or (n, 1, 1, l) True where a query may not see a key; None if every key is visible.
        dropout: (n, H, queries, l) scaled dropout mask of the attention weights; None without dropout.
    """

    n: int
    queries: int
    length: int
    hidden: Tensor | None
    dropout: Tensor | None


def attention_blocks(
    batch: PackedWindows, final: bool, causal: bool, dropout: Dropout, heads: int
) -> list[AttentionBlock]:
    """The blocks of one layer, in the order of the token axis; in the final layer lone windows have one query row."""
    device = batch.items.device
    blocks = []
    window = 0
    for bucket in batch.buckets:
        length = bucket.length
        key = torch.arange(length, device=device)
        lone = bucket.lone if final else 0
        for n, queries in ((bucket.full + bucket.lone - lone, length), (lone, 1)):
            if n == 0:
                continue
            if length == 1:
                hidden = None
            elif causal and queries == length:
                hidden = key > key[:, None]
            else:
                hidden = (key >= batch.lengths[window : window + n, None])[:, None, None, :]
            mask = dropout.mask((n, heads, queries, length), device)
            blocks.append(AttentionBlock(n, queries, length, hidden, mask))
            window += n
    return blocks


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, kv: Tensor, blocks: Sequence[AttentionBlock], heads: int) -> Tensor:
        dim = q.shape[1]
        scale = (dim // heads) ** -0.5
        out = torch.empty_like(q)
        saved = []
        q_row = kv_row = 0
        for block in blocks:
            n, m, length = block.n, block.queries, block.length
            q_b = _split_heads(q[q_row : q_row + n * m], n, m, 1, heads)[0]
            k_b, v_b = _split_heads(kv[kv_row : kv_row + n * length], n, length, 2, heads)
            scores = torch.bmm(q_b, k_b.transpose(1, 2)).mul_(scale)
            if block.hidden is not None:
                scores.view(n, heads, m, length).masked_fill_(block.hidden, float("-inf"))
            weights = scores.softmax(-1)
            kept = weights if block.dropout is None else weights * block.dropout.view_as(weights)
            mixed = torch.bmm(kept, v_b)
            out[q_row : q_row + n * m].view(n, m, heads, -1).copy_(mixed.view(n, heads, m, -1).transpose(1, 2))
            saved += [q_b, k_b, v_b, weights, kept]
            q_row += n * m
            kv_row += n * length
        ctx.save_for_backward(*saved)
        ctx.blocks, ctx.heads, ctx.dim, ctx.rows = blocks, heads, dim, (q_row, kv_row)  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        blocks, heads, dim = ctx.blocks, ctx.heads, ctx.dim  # type: ignore[attr-defined]
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        q_rows, kv_rows = ctx.rows  # type: ignore[attr-defined]
        scale = (dim // heads) ** -0.5
        grad_q = grad.new_empty(q_rows, dim)
        grad_kv = grad.new_empty(kv_rows, 2 * dim)
        q_row = kv_row = 0
        for number, block in enumerate(blocks):
            n, m, length = block.n, block.queries, block.length
            q_b, k_b, v_b, weights, kept = saved[5 * number : 5 * number + 5]
            grad_b = _split_heads(grad[q_row : q_row + n * m], n, m, 1, heads)[0]
            grad_v = torch.bmm(kept.transpose(1, 2), grad_b)
            grad_weights = torch.bmm(grad_b, v_b.transpose(1, 2))
            if block.dropout is not None:
                grad_weights.mul_(block.dropout.view_as(grad_weights))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scale)
            _join_heads(torch.bmm(grad_scores, k_b), grad_q[q_row : q_row + n * m], 0, n, m, heads)
            out = grad_kv[kv_row : kv_row + n * length]
            _join_heads(torch.bmm(grad_scores.transpose(1, 2), q_b), out, 0, n, length, heads)
            _join_heads(grad_v, out, dim, n, length, heads)
            q_row += n * m
            kv_row += n * length
        return grad_q, grad_kv, None, None


def _split_heads(rows: Tensor, n: int, length: int, parts: int, heads: int) -> Tensor:
    """(n·l, parts·D) to contiguous (parts, n·H, l, D/H)."""
    width = rows.shape[1] // (parts * heads)
    split = rows.view(n, length, parts, heads, width).permute(2, 0, 3, 1, 4)
    return split.reshape(parts, n * heads, length, width)


def _join_heads(blocks: Tensor, out: Tensor, column: int, n: int, length: int, heads: int) -> None:
    """Write (n·H, l, D/H) into the columns from ``column`` of (n·l, ·)."""
    width = blocks.shape[-1]
    target = out.view(n, length, -1)[:, :, column : column + heads * width].unflatten(2, (heads, width))
    target.copy_(blocks.view(n, heads, length, width).transpose(1, 2))


def packed_attention(q: Tensor, kv: Tensor, blocks: Sequence[AttentionBlock], heads: int) -> Tensor:
    """Scaled dot-product attention inside every window: q (Q, D), kv (T, 2D: keys then values) to (Q, D)."""
    result: Tensor = _PackedAttention.apply(q, kv, blocks, heads)
    return result
