"""The contrastive loss of RaSeRec's stage 1."""

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce_loss(
    first: Tensor,
    second: Tensor,
    temperature: float,
    all_first: Tensor | None = None,
    all_second: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Summed symmetric InfoNCE of paired views, (B, D) each (RaSeRec, eq. 5).

    Each of the 2B rows must find its partner among the 2B - 1 others by dot product. The sum over the 2B rows is
    halved, so dividing by B gives their mean.

    Args:
        all_first, all_second: (G, D) the views of all ranks. The others are then all 2G - 1 rows.
        offset: Index of this rank's first row among them.
    """
    all_first = first if all_first is None else all_first
    all_second = second if all_second is None else all_second
    count, total = len(first), len(all_first)
    own = offset + torch.arange(count, device=first.device)
    scores = torch.cat([first, second]) @ torch.cat([all_first, all_second]).T / temperature  # (2B, 2G)
    scores = scores.scatter(1, torch.cat([own, own + total])[:, None], float("-inf"))
    return F.cross_entropy(scores, torch.cat([own + total, own]), reduction="sum") / 2
