"""Cross-entropy over many classes: the items of a catalogue, or the vocabulary of a language model."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Logits of one block. With as many probabilities they take 32 MB on a CPU, about the last-level cache of a server. A
# GPU needs no cache for it, and small products would leave most of it idle.
_BLOCK_ELEMENTS = {"cpu": 4_000_000, "cuda": 64_000_000}
_ALIGNED = 16
_TINY = torch.finfo(torch.float32).tiny


class _FullSoftmax(torch.autograd.Function):
    """Cross-entropy against all items that never holds all (M, I) logits.

    The gradient of a block is computed while its logits are still in the cache. The backward pass only scales it.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, h: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        block = max(1, _BLOCK_ELEMENTS[h.device.type] // items.shape[0])
        need_h, need_items = ctx.needs_input_grad[0], ctx.needs_input_grad[1]  # type: ignore[attr-defined]
        grad_h = torch.empty_like(h) if need_h else None
        grad_items = torch.zeros_like(items) if need_items else None
        losses = torch.empty(h.shape[0], dtype=h.dtype, device=h.device)
        # Rows are whole cache lines long: products into unaligned rows take twice the time.
        width = -(-items.shape[0] // _ALIGNED) * _ALIGNED
        logits, probabilities = h.new_empty(2, min(block, h.shape[0]), width)  # (b, >= I) each
        logits[:, items.shape[0] :] = -torch.inf
        for start in range(0, h.shape[0], block):
            rows, target = h[start : start + block], targets[start : start + block, None]
            torch.mm(rows, items.T, out=logits[: len(rows), : items.shape[0]])
            probability = torch.softmax(logits[: len(rows)], 1, out=probabilities[: len(rows)])
            chosen = probability.gather(1, target)  # (b, 1)
            losses[start : start + block] = -chosen.clamp_min(_TINY).log()[:, 0]
            if need_h or need_items:
                probability.scatter_(1, target, chosen - 1)  # now the gradient of the loss by the logits
                probability = probability[:, : items.shape[0]]
            if grad_h is not None:
                torch.mm(probability, items, out=grad_h[start : start + block])
            if grad_items is not None:
                grad_items.addmm_(probability.T, rows)
        ctx.gradients = (grad_h, grad_items)  # type: ignore[attr-defined]
        return losses.sum()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_h, grad_items = ctx.gradients  # type: ignore[attr-defined]
        return (
            None if grad_h is None else grad_h * grad,
            None if grad_items is None else grad_items * grad,
            None,
        )


def single_or_double(x: Tensor) -> Tensor:
    """``x`` in float32 or float64, in which losses are computed whatever the precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_softmax_loss(h: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of ``targets`` (M,) under softmax(h · itemsᵀ), with h (M, D) and items (I, D).

    Value and gradient equal those of ``F.cross_entropy(h @ items.T, targets, reduction="sum")`` (RaSeRec, eq. 4). Only
    the loss of one target is at most 87, where its float32 probability underflows. For a language model, the items are
    its vocabulary.
    """
    with torch.autocast(h.device.type, enabled=False):  # autocast does not apply to products into given buffers
        loss: Tensor = _FullSoftmax.apply(single_or_double(h), single_or_double(items), targets)
    return loss
