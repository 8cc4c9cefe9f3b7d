"""Exact nearest neighbours by inner product, for more queries at once than a flat Faiss index handles well."""

import numpy as np
import numpy.typing as npt
import torch

_GROUP = 32
_BLOCK_ELEMENTS = 8_000_000  # scores held at once: 32 MB, in a buffer that is faulted in only once


def exact_search(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """(Q, k) rows of ``vectors`` (N, D) with the greatest inner products, best first; -1 behind the N-th.

    The same answer as ``faiss.IndexFlatIP`` (equal scores may come in another order). Selecting the best of N scores
    costs more than computing them, so the scores are first reduced to the maxima of groups of 32: the best k scores lie
    in the k groups with the greatest maxima, and only those are sorted. Runs on a GPU if there is one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = len(vectors)
    groups = -(-n // _GROUP)
    wanted, kept = min(k, n), min(k, groups)
    columns = torch.zeros(vectors.shape[1], groups * _GROUP, device=device)
    columns[:, :n] = torch.from_numpy(np.ascontiguousarray(vectors.T)).to(device)
    block = max(1, _BLOCK_ELEMENTS // columns.shape[1])
    buffer = torch.empty(min(block, len(queries)), columns.shape[1], device=device)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, len(queries), block):
        part = torch.from_numpy(np.ascontiguousarray(queries[start : start + block])).to(device)
        scores = torch.mm(part, columns, out=buffer[: len(part)])
        scores[:, n:] = -torch.inf
        grouped = scores.view(len(part), groups, _GROUP)
        group = grouped.amax(-1).topk(kept, 1, sorted=False).indices
        candidates = grouped.gather(1, group[:, :, None].expand(-1, -1, _GROUP)).view(len(part), -1)
        place = candidates.topk(wanted, 1).indices
        rows = group.gather(1, place // _GROUP) * _GROUP + place % _GROUP
        found[start : start + len(part), :wanted] = rows.cpu().numpy()
    return found
