import math

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import RR, Qrel, ScoredDoc, Success, nDCG

from rarec.errors import InputError
from rarec.metrics.ranking import defined_mean, full_ranking, hit_rate, mrr, ndcg, ranking_table


def make_problem(n_users=60, n_items=90, dim=4, seed=0, tied=True):
    """A random problem; integer vectors of a small range give exact scores with very many ties."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        return rng.integers(-2, 3, shape) if tied else rng.standard_normal(shape)

    queries, items = draw((n_users, dim)), draw((n_items, dim))
    seen = [rng.integers(0, n_items, rng.integers(0, 12)) for _ in range(n_users)]
    targets = rng.integers(0, n_items, n_users)
    for user in range(0, n_users, 5):  # a target that the user has seen before
        seen[user] = np.append(seen[user], targets[user])
    offsets = np.concatenate([[0], np.cumsum([len(items_of_user) for items_of_user in seen])])
    return (
        torch.tensor(queries, dtype=torch.float32),
        torch.tensor(items, dtype=torch.float32),
        torch.tensor(targets),
        torch.tensor(offsets),
        torch.tensor(np.concatenate(seen)),
    )


def slow_ranking(queries, items, targets, offsets, seen_items, top_n):
    """The definition, one user at a time: sort all candidates by descending score, then by index."""
    rank, rank_masked, lists, lists_masked = [], [], [], []
    for user in range(len(queries)):
        scores = (queries[user] @ items.T).numpy()
        target = int(targets[user])
        seen = set(seen_items[offsets[user] : offsets[user + 1]].tolist())
        by_score = sorted(range(len(items)), key=lambda item: (-scores[item], item))
        unseen = [item for item in by_score if item not in seen]
        rank.append(by_score.index(target) + 1)
        rank_masked.append([item for item in by_score if item not in seen or item == target].index(target) + 1)
        lists.append((by_score + [-1] * top_n)[:top_n])
        lists_masked.append((unseen + [-1] * top_n)[:top_n])
    return rank, rank_masked, lists, lists_masked


@pytest.mark.parametrize("block", [None, 1, 7, 60])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_full_ranking_equals_sorting_each_user(block, seed, tied):
    problem = make_problem(seed=seed, tied=tied)
    told = []
    result = full_ranking(*problem, top_n=10, block=block, report=lambda **values: told.append(values))
    users = len(problem[0])
    assert told == [{"step": start, "steps": users, "unit": "user"} for start in range(0, users, block or users)]
    rank, rank_masked, lists, lists_masked = slow_ranking(*problem, top_n=10)
    assert result.rank.tolist() == rank
    assert result.rank_masked.tolist() == rank_masked
    assert result.top_items.tolist() == lists
    assert result.top_items_masked.tolist() == lists_masked
    scores = problem[0] @ problem[1].T
    torch.testing.assert_close(result.top_scores, scores.gather(1, result.top_items))
    torch.testing.assert_close(result.top_scores_masked, scores.gather(1, result.top_items_masked))


def test_top_lists_equal_numpy_argsort():
    queries, items, targets, offsets, seen = make_problem(tied=False)
    result = full_ranking(queries, items, targets, offsets, seen, top_n=20)
    expected = np.argsort(-(queries @ items.T).numpy(), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(result.top_items, expected)


def test_ranks_without_lists_are_the_same_and_no_list_is_made():
    problem = make_problem()
    with_lists, without = full_ranking(*problem, top_n=5), full_ranking(*problem)
    assert torch.equal(with_lists.rank, without.rank)
    assert torch.equal(with_lists.rank_masked, without.rank_masked)
    assert without.top_items is None
    assert without.top_scores_masked is None


def test_by_hand_ties_seen_target_and_a_user_without_target():
    items = torch.tensor([[3.0], [1.0], [2.0], [2.0], [2.0]])
    queries = torch.ones(4, 1)
    # User 0 saw items 0 and 2; user 1 its own target and item 0 twice; user 2 nothing; user 3 has no target.
    offsets, seen = torch.tensor([0, 2, 5, 5, 6]), torch.tensor([0, 2, 3, 0, 0, 2])
    result = full_ranking(queries, items, torch.tensor([4, 3, 1, -1]), offsets, seen, top_n=6)
    assert result.rank.tolist() == [4, 3, 5, -1]
    assert result.rank_masked.tolist() == [2, 2, 5, -1]
    assert result.top_items[0].tolist() == [0, 2, 3, 4, 1, -1]
    assert result.top_items_masked.tolist() == [
        [3, 4, 1, -1, -1, -1],
        [2, 4, 1, -1, -1, -1],
        [0, 2, 3, 4, 1, -1],
        [0, 3, 4, 1, -1, -1],
    ]
    assert result.top_scores_masked[0].tolist() == [2.0, 2.0, 1.0, -math.inf, -math.inf, -math.inf]


def test_constant_scores_rank_by_item_index():
    problem = (torch.zeros(3, 2), torch.ones(2000, 2), torch.tensor([0, 999, 1999]), torch.tensor([0, 0, 1, 1]))
    result = full_ranking(*problem, torch.tensor([5]), top_n=3)
    assert result.rank.tolist() == [1, 1000, 2000]
    assert result.rank_masked.tolist() == [1, 999, 2000]
    assert result.top_items.tolist() == [[0, 1, 2]] * 3


def test_half_precision_is_ranked_in_float32():
    queries, items, *rest = make_problem(tied=True)
    expected = full_ranking(queries, items, *rest, top_n=4)
    result = full_ranking(queries.bfloat16(), items.bfloat16(), *rest, top_n=4)
    assert torch.equal(result.rank, expected.rank)
    assert result.top_scores.dtype == torch.float32


def test_no_users():
    nothing = torch.zeros(0, dtype=torch.int64)
    result = full_ranking(torch.zeros(0, 3), torch.ones(4, 3), nothing, torch.tensor([0]), nothing, top_n=2)
    assert result.rank.shape == (0,)
    assert result.top_items.shape == (0, 2)


def test_input_is_not_modified():
    problem = make_problem()
    copies = [tensor.clone() for tensor in problem]
    full_ranking(*problem, top_n=5)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(problem, copies, strict=True))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (0, torch.full((2, 3), math.nan), "queries contain NaN"),
        (1, torch.full((5, 3), -math.inf), "item_embeddings contain NaN or infinite"),
        (0, torch.full((2, 3), 3e38), "overflow"),
        (0, torch.ones(2, 4), "equal width"),
        (1, torch.ones(0, 3), "nothing to rank"),
        (2, torch.tensor([0, 5]), "targets must be between -1 and 4"),
        (2, torch.tensor([0]), "one item index for each of 2 queries"),
        (3, torch.tensor([0, 2]), "seen_offsets must be 3"),
        (3, torch.tensor([0, 2, 1]), "seen_offsets must be 3"),
        (4, torch.tensor([0, -1]), "seen_items must be between 0 and 4"),
    ],
)
def test_bad_input_is_one_clear_error(argument, value, message):
    arguments = [
        torch.ones(2, 3),
        torch.ones(5, 3),
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2]),
        torch.tensor([2, 3]),
    ]
    arguments[argument] = value
    with pytest.raises(InputError, match=message):
        full_ranking(*arguments)


@pytest.mark.parametrize("tied", [True, False])
def test_metrics_equal_ir_measures(tied):
    queries, items, targets, offsets, seen = make_problem(tied=tied)
    result = full_ranking(queries, items, targets, offsets, seen)
    scores = (queries @ items.T).double().numpy()
    if tied:
        # ir-measures orders equal scores by its own rule: steps below 1, the least gap, make ours explicit.
        scores -= np.arange(len(items)) * 1e-3
    ks = (1, 5, 10, 20, 50)
    for rank, masked in ((result.rank, False), (result.rank_masked, True)):
        qrels, run = [], []
        for user, target in enumerate(targets.tolist()):
            hidden = set(seen[offsets[user] : offsets[user + 1]].tolist()) - {target} if masked else set()
            qrels.append(Qrel(str(user), str(target), 1))
            run += [
                ScoredDoc(str(user), str(item), scores[user, item]) for item in range(len(items)) if item not in hidden
            ]
        measures = {"HR": Success, "NDCG": nDCG, "MRR": RR}
        oracle = ir_measures.calc_aggregate([m @ k for m in measures.values() for k in ks], qrels, run)
        table = ranking_table(rank, ks)
        assert len(table) == len(oracle) == 15
        for name, measure in measures.items():
            for k in ks:
                assert table[f"{name}@{k}"] == pytest.approx(oracle[measure @ k], abs=1e-12)


def test_metric_values_by_hand():
    rank = torch.tensor([1, 2, 3, 7, -1])
    np.testing.assert_allclose(hit_rate(rank, 3), [1, 1, 1, 0, np.nan])
    np.testing.assert_allclose(ndcg(rank, 3), [1, 1 / math.log2(3), 1 / 2, 0, np.nan])
    np.testing.assert_allclose(mrr(rank, 3), [1, 1 / 2, 1 / 3, 0, np.nan])
    table = ranking_table(rank, ks=(3, 10))
    assert table == pytest.approx(
        {
            "HR@3": 3 / 4,
            "HR@10": 4 / 4,
            "NDCG@3": (1 + 1 / math.log2(3) + 1 / 2) / 4,
            "NDCG@10": (1 + 1 / math.log2(3) + 1 / 2 + 1 / 3) / 4,
            "MRR@3": (1 + 1 / 2 + 1 / 3) / 4,
            "MRR@10": (1 + 1 / 2 + 1 / 3 + 1 / 7) / 4,
        }
    )


def test_no_defined_user_gives_nan_never_zero():
    assert all(math.isnan(value) for value in ranking_table(torch.tensor([-1, -1])).values())
    assert all(math.isnan(value) for value in ranking_table([]).values())
    assert math.isnan(defined_mean([]))
    assert defined_mean([math.nan, 0.25, 0.75]) == 1 / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    problem = make_problem(tied=True)
    expected = full_ranking(*problem, top_n=10)
    result = full_ranking(*(tensor.cuda() for tensor in problem), top_n=10)
    for name in ("rank", "rank_masked", "top_items", "top_items_masked"):
        assert torch.equal(getattr(result, name), getattr(expected, name))
