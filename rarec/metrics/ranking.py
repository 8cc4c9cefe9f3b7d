"""Full-ranking evaluation: the rank of each user's target among all items, and metrics of that rank.

Every user has one relevant item, the target. Scores are dot products of a query vector and the item embeddings.
Nothing is sampled: all items compete. Items with equal scores are ordered by item index, so that ranks and lists are
deterministic. Models and data loading do not belong here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rarec.errors import InputError
from rarec.training.progress import ReportProgress, quiet
from rarec.types import Float64Array

Ranks = Tensor | npt.ArrayLike

CUTOFFS = (5, 10, 20, 50)
CPU = torch.device("cpu")
# Scores are computed, compared and summed in blocks. 16 MB stay in a CPU's caches, and are enough to occupy a GPU.
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class RankingResult:
    """Ranks and recommendation lists of U users, on the CPU, in the order of the queries.

    `masked` means that items which the user has seen are not candidates.
    """

    rank: Tensor
    """(U,) int64: rank of the target among all items, from 1; -1 for a user without target."""
    rank_masked: Tensor
    """(U,) int64: the same with seen items removed from the candidates, but never the target."""
    top_items: Tensor | None = None
    """(U, top_n) int64: the items with the highest scores, best first; -1 if there are fewer than top_n items."""
    top_scores: Tensor | None = None
    """(U, top_n): their scores; -inf where `top_items` is -1."""
    top_items_masked: Tensor | None = None
    """(U, top_n) int64: like `top_items`, but without items that the user has seen, not even the target."""
    top_scores_masked: Tensor | None = None
    """(U, top_n): their scores; -inf where `top_items_masked` is -1."""

    def lists(self, exclude_seen: bool) -> tuple[Tensor, Tensor]:
        """(U, top_n) items and scores, with or without what the user has seen. Needs top_n > 0."""
        items = self.top_items_masked if exclude_seen else self.top_items
        scores = self.top_scores_masked if exclude_seen else self.top_scores
        assert items is not None
        assert scores is not None
        return items, scores


@torch.no_grad()
def full_ranking(
    queries: Tensor,
    item_embeddings: Tensor,
    targets: Tensor,
    seen_offsets: Tensor,
    seen_items: Tensor,
    *,
    top_n: int = 0,
    block: int | None = None,
    report: ReportProgress = quiet,
) -> RankingResult:
    """Rank each user's target among all items by dot product, unmasked and masked, in one pass over the scores.

    Args:
        queries: (U, d) user vectors, on the device that does the work.
        item_embeddings: (I, d), on the same device.
        targets: (U,) item index of each user's target; -1 for a user who has none, for whom only the lists are useful.
        seen_offsets: (U + 1,) user u has seen `seen_items[seen_offsets[u]:seen_offsets[u + 1]]`, repeats allowed.
        seen_items: (S,) item indices.
        top_n: Length of the recommendation lists; 0 makes none.
        block: Users per block of scores; by default as many as fit into 16 MB.
        report: Is told before each block how many users are done.

    Raises:
        InputError: Shapes or indices do not match, or a score would not be a number.

    Half-precision input is scored in float32. Equal scores means equal as computed: the scores of two items with equal
    embeddings may differ in the last bit, depending on how the matrix product is cut into tiles.
    """
    _check_vectors(queries, item_embeddings)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, item_embeddings.dtype), torch.float32)
    items_t = item_embeddings.to(dtype).T  # (d, I)

    def score(users: Tensor, scores: Tensor) -> None:
        torch.mm(queries[users].to(dtype), items_t, out=scores)

    shape = (len(queries), len(item_embeddings))
    return ranking_by_scores(
        score, shape, targets, seen_offsets, seen_items,
        dtype=dtype, device=queries.device, top_n=top_n, block=block, report=report,
    )  # fmt: skip


@torch.no_grad()
def ranking_by_scores(
    score: Callable[[Tensor, Tensor], None],
    shape: tuple[int, int],
    targets: Tensor,
    seen_offsets: Tensor,
    seen_items: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    top_n: int = 0,
    block: int | None = None,
    report: ReportProgress = quiet,
) -> RankingResult:
    """`full_ranking` by any finite scores: ``score`` gets users (B,) and fills in their scores (B, I).

    Args:
        shape: (U, I).
        dtype, device: Of the scores.
    """
    n_users, n_items = shape
    targets = targets.to(device, torch.int64)
    if targets.shape != (n_users,):
        raise InputError(
            f"targets have shape {tuple(targets.shape)}; give one item index for each of {n_users} queries."
        )
    _check_indices("targets", targets, -1, n_items)

    # Users with close targets share a block: then the columns where the tie rule differs between its users are few.
    order = torch.argsort(targets, stable=True)
    has_target = targets[order] >= 0
    targets = targets[order].clamp(min=0)
    seen_keys = _seen_keys(order, n_items, seen_offsets.to(device, torch.int64), seen_items.to(device, torch.int64))

    if block is None:
        block = max(1, BLOCK_BYTES // (n_items * dtype.itemsize))
    starts = list(range(0, n_users, block))
    stops = [min(start + block, n_users) for start in starts]
    seen_bounds = torch.searchsorted(seen_keys, torch.tensor([*starts, n_users], device=device) * n_items).tolist()
    ends = [targets[torch.tensor(places, dtype=torch.int64)].tolist() for places in (starts, [s - 1 for s in stops])]
    columns = list(zip(*ends, strict=True))

    rank = torch.empty(n_users, dtype=torch.int64, device=device)
    rank_masked = torch.empty_like(rank)
    lists = [
        (
            torch.empty(n_users, top_n, dtype=torch.int64, device=device),
            torch.empty(n_users, top_n, dtype=dtype, device=device),
        )
        for _ in range(2 if top_n else 0)
    ]
    buffer = torch.empty(min(block, n_users), n_items, dtype=dtype, device=device)
    for b, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        report(step=start, steps=n_users, unit="user")
        users = order[start:stop]
        scores = buffer[: stop - start]  # (B, I)
        score(users, scores)
        target = targets[start:stop, None]  # (B, 1)
        target_score = scores.gather(1, target)  # (B, 1)
        keys = seen_keys[seen_bounds[b] : seen_bounds[b + 1]]
        row, seen = keys // n_items - start, keys % n_items  # (S_b,)
        seen_score = scores[row, seen]

        if top_n:
            lists[0][0][users], lists[0][1][users] = _top(scores, top_n)
            scores[row, seen] = -torch.inf
            lists[1][0][users], lists[1][1][users] = _top(scores, top_n)
            scores[row, seen] = seen_score

        # The target is never ahead of itself, so a seen target stays a candidate.
        ahead = _ahead(seen_score, seen, target_score[row, 0], target[row, 0]).long()
        seen_ahead = torch.zeros(stop - start, dtype=torch.int64, device=device).index_add_(0, row, ahead)
        block_rank = 1 + _count_ahead(scores, target, target_score, *columns[b])
        missing = ~has_target[start:stop]
        rank[users] = block_rank.masked_fill(missing, -1)
        rank_masked[users] = (block_rank - seen_ahead).masked_fill(missing, -1)
    return RankingResult(rank.cpu(), rank_masked.cpu(), *(table.cpu() for pair in lists for table in pair))


def _ahead(score: Tensor, item: Tensor, target_score: Tensor, target: Tensor) -> Tensor:
    """Whether an item ranks above the target: higher score, or equal score and smaller index."""
    return (score > target_score) | ((score == target_score) & (item < target))


def _count_ahead(scores: Tensor, target: Tensor, target_score: Tensor, first: int, last: int) -> Tensor:
    """Count the items ranked above each target, which are in columns first..last. Overwrites `scores` (B, I).

    Left of `first` an equal score ranks above every target of the block, and right of `last` below. So one comparison
    per score is enough, and only the columns between need the exact rule. Comparing in place leaves ones and zeros in
    the scores' own type, which sum several times faster than booleans.
    """
    scores[:, :first].ge_(target_score)
    scores[:, last + 1 :].gt_(target_score)
    middle = scores[:, first : last + 1]
    middle.copy_(_ahead(middle, torch.arange(first, last + 1, device=scores.device), target_score, target))
    exact_in_float32 = scores.shape[1] <= 1 << 24
    return scores.sum(1, dtype=None if exact_in_float32 else torch.float64).long()


def _top(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Items and scores, both (B, n), best first, equal scores by item index; -1 and -inf if there are fewer items."""
    n_items = scores.shape[1]
    kept = min(n, n_items)
    top, items = scores.topk(min(kept + 1, n_items), dim=1)
    if kept < n_items:
        # topk picks any of the equal scores at the cut. Such rows, rare with real scores, are sorted in full.
        tied = ((top[:, kept - 1] == top[:, kept]) & (top[:, kept] > -torch.inf)).nonzero()[:, 0]
        top, items = top[:, :kept], items[:, :kept]
        if len(tied):
            full_scores, full_items = scores[tied].sort(dim=1, descending=True, stable=True)
            top[tied], items[tied] = full_scores[:, :kept], full_items[:, :kept]
    items, by_item = items.sort(dim=1)
    top, by_score = top.gather(1, by_item).sort(dim=1, descending=True, stable=True)
    items = items.gather(1, by_score).masked_fill(top == -torch.inf, -1)
    pad = (0, n - kept)
    return torch.nn.functional.pad(items, pad, value=-1), torch.nn.functional.pad(top, pad, value=-torch.inf)


def _seen_keys(order: Tensor, n_items: int, offsets: Tensor, items: Tensor) -> Tensor:
    """Sorted distinct keys `position * n_items + item` of seen items, with the user's position in `order`."""
    n_users = len(order)
    lengths = offsets.diff()
    if offsets.shape != (n_users + 1,) or int(offsets[0]) != 0 or int(offsets[-1]) != len(items) or (lengths < 0).any():
        raise InputError(
            f"seen_offsets must be {n_users + 1} ascending positions from 0 to {len(items)}, the number of seen_items."
        )
    _check_indices("seen_items", items, 0, n_items)
    position = torch.empty_like(order)
    position[order] = torch.arange(n_users, device=order.device)
    return torch.unique(torch.repeat_interleave(position, lengths) * n_items + items)


def _check_vectors(queries: Tensor, item_embeddings: Tensor) -> None:
    """Refuse vectors whose dot products might not be numbers. Far cheaper than checking the scores."""
    if queries.ndim != 2 or item_embeddings.ndim != 2 or queries.shape[1] != item_embeddings.shape[1]:
        raise InputError(
            f"queries {tuple(queries.shape)} and item_embeddings {tuple(item_embeddings.shape)} must be matrices of "
            "equal width."
        )
    if len(item_embeddings) == 0:
        raise InputError("item_embeddings is empty, so there is nothing to rank.")
    largest = 1.0
    for name, vectors in (("queries", queries), ("item_embeddings", item_embeddings)):
        if vectors.numel():
            low, high = (float(extreme) for extreme in torch.aminmax(vectors))
            if not (np.isfinite(low) and np.isfinite(high)):
                raise InputError(
                    f"{name} contain NaN or infinite values, so scores are undefined; the training diverged."
                )
            largest *= max(abs(low), abs(high))
    if largest * queries.shape[1] > torch.finfo(torch.float32).max:
        raise InputError(
            "queries and item_embeddings are so large that their dot products overflow; the training diverged."
        )


def _check_indices(name: str, indices: Tensor, low: int, n_items: int) -> None:
    """Refuse indices outside low..n_items - 1."""
    if len(indices) and not (low <= int(indices.min()) and int(indices.max()) < n_items):
        raise InputError(
            f"{name} must be between {low} and {n_items - 1}, "
            f"but they range from {int(indices.min())} to {int(indices.max())}."
        )


def hit_rate(rank: Ranks, k: int) -> Float64Array:
    """HR@k of each user: 1 if rank <= k, else 0; NaN without target. With one relevant item this equals Recall@k."""
    ranks = as_float_ranks(rank)
    return np.where(np.isnan(ranks), np.nan, (ranks <= k).astype(np.float64))


def ndcg(rank: Ranks, k: int) -> Float64Array:
    """NDCG@k of each user: 1 / log2(1 + rank) if rank <= k, else 0; NaN without target.

    The ideal list holds the one relevant item first, so the ideal DCG is 1 (Järvelin and Kekäläinen, 2002).
    """
    ranks = as_float_ranks(rank)
    return hit_rate(ranks, k) / np.log2(1.0 + ranks)


def mrr(rank: Ranks, k: int) -> Float64Array:
    """MRR@k of each user (reciprocal rank): 1 / rank if rank <= k, else 0; NaN without target."""
    ranks = as_float_ranks(rank)
    return hit_rate(ranks, k) / ranks


def per_user_metrics(rank: Ranks, ks: Sequence[int] = CUTOFFS) -> Iterator[tuple[str, Float64Array]]:
    """Yield ("HR@5", per-user values) and so on: HR, NDCG and MRR at each cutoff, metric by metric."""
    ranks = as_float_ranks(rank)
    for name, metric in (("HR", hit_rate), ("NDCG", ndcg), ("MRR", mrr)):
        for k in ks:
            yield f"{name}@{k}", metric(ranks, k)


def defined_mean(values: npt.ArrayLike) -> float:
    """Mean over the users for whom the value is defined (not NaN); NaN if there is none."""
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def ranking_table(rank: Ranks, ks: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Mean metrics over the users with a target, under their names: "HR@5", ..., "NDCG@5", ..., "MRR@50".

    Args:
        rank: (U,) ranks from 1; users without target (rank below 1 or NaN) are left out.
        ks: The cutoffs.

    All values are NaN if no user has a target.
    """
    return {name: defined_mean(values) for name, values in per_user_metrics(rank, ks)}


def as_float_ranks(rank: Ranks) -> Float64Array:
    """Ranks as a float array (U,), NaN where the user has no target."""
    array = rank.detach().cpu().numpy() if isinstance(rank, Tensor) else rank
    ranks = np.asarray(array, dtype=np.float64)
    return np.where(ranks >= 1, ranks, np.nan)
