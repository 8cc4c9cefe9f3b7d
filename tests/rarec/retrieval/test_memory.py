from dataclasses import replace

import numpy as np
import pytest
import torch
from callers_data import unchanged
from raserec_toys import random_sequences, sequences_of, unit

from rarec.data.sequences import ranges
from rarec.errors import InputError
from rarec.retrieval import exact as exact_module
from rarec.retrieval import memory as memory_module
from rarec.retrieval.index import gpus_of_this_process, normalised
from rarec.retrieval.memory import NO_USER, MemoryBank, Queries, first_allowed
from rarec.retrieval.settings import MemorySettings

DIM, ITEMS = 5, 14


@pytest.fixture(scope="module")
def sequences():
    return random_sequences([6, 1, 40, 9, 3, 0, 22, 4, 12], n_items=ITEMS, seed=4)


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def new_bank(sequences, settings=None, prefixes=None):
    prefixes = sequences.prefixes("train") if prefixes is None else prefixes
    return MemoryBank.build(sequences, prefixes, vectors(len(prefixes)), "enc", settings or MemorySettings())


def all_queries(sequences):
    """Training, validation and test prefixes of the users, and two strangers; vectors close to some memory."""
    prefixes = np.concatenate([sequences.prefixes(split) for split in ("train", "valid", "test")])
    known = Queries.of(sequences, prefixes, vectors(len(prefixes), seed=9))
    return Queries(
        np.concatenate([known.vectors, vectors(2, seed=8)]),
        np.concatenate([known.users, [NO_USER, NO_USER]]),
        np.concatenate([known.prefixes, [0, 10**9]]),
        np.concatenate([known.times, [25, 10**9]]),
    )


def brute_allowed(sequences, prefixes, queries, q, time_cut):
    """Memory ids that query q may see, by the rules in words."""
    ids = []
    for number, prefix in enumerate(prefixes):
        user = max(u for u in range(sequences.n_users) if sequences.offsets[u] <= prefix)
        if user == queries.users[q] and prefix >= queries.prefixes[q]:
            continue  # the query itself or its own future
        if time_cut and sequences.timestamps[prefix + 1] > queries.times[q]:
            continue  # the memory's next item was not known yet
        ids.append(number)
    return ids


def cosines(bank, queries):
    return unit(queries.vectors) @ unit(bank.representations).T


def assert_best(found, ranking_keys, allowed, k):
    """``found`` holds the k allowed ids with the greatest keys, best first, each once; equal keys in any order."""
    real = found[found >= 0]
    assert len(set(real.tolist())) == len(real) == min(k, len(allowed))
    assert np.all(found[len(real) :] == -1)
    assert set(real.tolist()) <= set(allowed)
    best = sorted((ranking_keys[i] for i in allowed), reverse=True)[:k]
    np.testing.assert_allclose([ranking_keys[i] for i in real], best, atol=1e-6)


@pytest.mark.parametrize("time_cut", [False, True])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_similar_users_equal_brute_force(sequences, monkeypatch, k, time_cut):
    monkeypatch.setattr(memory_module, "_CHUNK", 37)
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    queries = all_queries(sequences)
    with unchanged(queries, sequences, bank.representations, bank.users, bank.prefixes, bank.targets, bank.known_at):
        found = bank.similar_users(queries, k)
    similarity = cosines(bank, queries)
    short = 0
    for q in range(len(queries)):
        allowed = brute_allowed(sequences, bank.prefixes, queries, q, time_cut)
        assert_best(found[q], [(s,) for s in similarity[q]], allowed, k)
        short += len(allowed) < k
    assert (short > 0) == (time_cut or k == 60)  # with the cut, some early queries have few memories


@pytest.mark.parametrize("time_cut", [False, True])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_suitable_items_equal_brute_force(sequences, monkeypatch, k, time_cut):
    monkeypatch.setattr(memory_module, "_CANDIDATES", 300)
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    queries, embeddings = all_queries(sequences), vectors(ITEMS, seed=6)
    with unchanged(queries, embeddings, bank.representations, bank.users, bank.prefixes, bank.targets):
        found = bank.suitable_items(queries, embeddings, k)
    by_item = unit(queries.vectors) @ unit(embeddings).T
    similarity = cosines(bank, queries)
    assert len(np.unique(bank.targets)) > 10
    for q in range(len(queries)):
        allowed = brute_allowed(sequences, bank.prefixes, queries, q, time_cut)
        keys = [(by_item[q, bank.targets[i]], similarity[q, i]) for i in range(len(bank))]
        assert_best(found[q], keys, allowed, k)


class Told:
    """What a search reports: the steps, all of the same total and unit, and which were forced."""

    def __init__(self, total):
        self.total, self.steps, self.forced = total, [], []

    def __call__(self, step, steps, unit, force=False):
        assert (steps, unit) == (self.total, "query")
        self.steps.append(step)
        self.forced.append(force)


@pytest.mark.parametrize("time_cut", [False, True])
def test_searches_tell_how_many_queries_are_answered(sequences, monkeypatch, time_cut):
    """Or a worker that searches a large bank would be taken for hung."""
    monkeypatch.setattr(memory_module, "_CHUNK", 7)
    monkeypatch.setattr(memory_module, "_CANDIDATES", 300)
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    queries = all_queries(sequences)
    for search in (bank.similar_users, lambda *rest: bank.suitable_items(rest[0], vectors(ITEMS, seed=6), *rest[1:])):
        told = Told(len(queries))
        found = search(queries, 20, told)
        assert np.array_equal(found, search(queries, 20))
        assert len(told.steps) > len(queries) / 7  # every chunk is told of, also those that answer no query yet
        assert (told.steps[0], told.steps[-1]) == (0, len(queries))
        assert told.steps == sorted(told.steps)
        assert len(set(told.steps)) > 5
        assert [place for place, force in enumerate(told.forced) if force] == [0, len(told.steps) - 1]


def test_popular_items_do_not_make_one_ordering_huge(monkeypatch):
    """Every memory has one of two items; what is held at once stays within the bound all the same."""
    sequences = random_sequences([30] * 20, n_items=2, seed=1)
    bank = new_bank(sequences)
    monkeypatch.setattr(memory_module, "_CANDIDATES", 2_000)
    held = []

    def watched(starts, counts):
        held.append(int(counts.sum()))
        return ranges(starts, counts)

    monkeypatch.setattr(memory_module, "ranges", watched)
    queries = Queries.of(sequences, bank.prefixes, bank.representations)
    found = bank.suitable_items(queries, vectors(2, seed=6), 5)
    assert (found >= 0).sum(1).min() >= 4
    assert len(held) > 50
    assert max(held) <= 2_000


def test_a_dominant_user_does_not_crowd_out_the_others():
    """Every close memory is the query's own future, so the search has to go deep."""
    sequences = random_sequences([400, 5, 5], n_items=3, seed=1)
    prefixes = sequences.prefixes("train")
    representations = vectors(len(prefixes))
    own = sequences.user_of[prefixes] == 0
    representations[own] = [1, 0, 0, 0, 0] + 0.01 * representations[own]
    bank = MemoryBank.build(sequences, prefixes, representations, "enc", MemorySettings())
    query = Queries.of(sequences, np.array([1]), np.array([[1, 0, 0, 0, 0]], np.float32))
    assert np.sum(own) == 397
    assert sorted(bank.similar_users(query, 5)[0].tolist()) == [0, *range(397, 401)]
    assert sorted(bank.suitable_items(query, vectors(3), 5)[0].tolist()) == [0, *range(397, 401)]


@pytest.mark.parametrize("time_cut", [False, True])
def test_no_query_sees_itself_or_what_comes_later(sequences, time_cut):
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    bank.append(sequences, sequences.prefixes("valid"), vectors(len(sequences.prefixes("valid")), seed=3))
    queries = all_queries(sequences)
    # The worst case: every query is exactly as its own memory.
    queries.vectors[: len(bank)] = bank.representations
    for found in (bank.similar_users(queries, 9), bank.suitable_items(queries, vectors(ITEMS, seed=6), 9)):
        row, column = np.nonzero(found >= 0)
        ids = found[row, column]
        own = bank.users[ids] == queries.users[row]
        assert own.any()
        assert np.all(bank.prefixes[ids[own]] < queries.prefixes[row[own]])
        # A shorter own prefix's next item is part of the query's own history, never its target.
        assert np.all(bank.prefixes[ids[own]] + 1 <= queries.prefixes[row[own]])
        late = bank.known_at[ids] > queries.times[row]
        assert not late.any() if time_cut else late.any()


@pytest.mark.parametrize("time_cut", [False, True])
def test_drawn_memories_are_allowed_and_owe_nothing_to_similarity(sequences, monkeypatch, time_cut):
    monkeypatch.setattr(memory_module, "_CHUNK", 7)
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    queries = all_queries(sequences)
    drawn = bank.drawn(queries, 5, seed=1)
    prefixes = sequences.prefixes("train")
    for q in range(len(queries)):
        allowed = brute_allowed(sequences, prefixes, queries, q, time_cut)
        assert set(drawn[q][drawn[q] >= 0].tolist()) <= set(allowed)
        assert (drawn[q] >= 0).all() or len(allowed) < len(bank) / 2
    other = replace(queries, vectors=queries.vectors[::-1].copy())
    assert np.array_equal(bank.drawn(other, 5, seed=1), drawn)
    assert not np.array_equal(bank.drawn(queries, 5, seed=2), drawn)


def test_memories_by_hand():
    sequences = sequences_of([[0, 1, 2, 3], [2, 0, 1, 3]], 4, [[10, 20, 30, 40], [5, 20, 25, 26]])
    bank = new_bank(sequences)
    assert bank.prefixes.tolist() == [0, 4]
    assert bank.users.tolist() == [0, 1]
    assert bank.targets.tolist() == [1, 0]
    assert bank.known_at.tolist() == [20, 20]
    queries = Queries.of(sequences, np.array([0, 1, 4, 6]), vectors(4))
    assert queries.times.tolist() == [10, 20, 5, 25]
    both = np.array([[0, 1, -1]] * 4)
    assert bank.allowed(queries, both).tolist() == [[0, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    bank.settings = MemorySettings(time_cut=True)
    assert bank.allowed(queries, both).tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert bank.similar_users(queries, 2)[[0, 2]].tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_appending_equals_rebuilding(sequences, index):
    settings = MemorySettings(index=index, ivf_lists=2, ivf_probes=2, hnsw_search=200)
    prefixes = np.concatenate([sequences.prefixes("train"), sequences.prefixes("valid")])
    representations, queries = vectors(len(prefixes)), all_queries(sequences)
    cut = len(sequences.prefixes("train"))
    whole = MemoryBank.build(sequences, prefixes, representations, "enc", settings)
    grown = MemoryBank.build(sequences, prefixes[:cut], representations[:cut], "enc", settings)
    before = grown.similar_users(queries, 6)
    copy = grown.copy()
    with unchanged(prefixes, representations, sequences):
        copy.append(sequences, prefixes[cut:], representations[cut:])
    assert len(grown) == cut  # the copied bank did not grow
    assert np.array_equal(grown.similar_users(queries, 6), before)
    for name in ("representations", "users", "prefixes", "targets", "known_at"):
        assert np.array_equal(getattr(copy, name), getattr(whole, name)), name
    assert np.array_equal(copy.similar_users(queries, 6), whole.similar_users(queries, 6))
    assert np.array_equal(
        copy.suitable_items(queries, vectors(ITEMS, seed=6), 6),
        whole.suitable_items(queries, vectors(ITEMS, seed=6), 6),
    )


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_saved_bank_comes_back_and_grows(sequences, index, tmp_path):
    settings = MemorySettings(index=index, ivf_lists=8, ivf_probes=3, seed=5)
    bank, queries = new_bank(sequences, settings), all_queries(sequences)
    bank.save(tmp_path)
    back = MemoryBank.load(tmp_path)
    assert (back.encoder, back.settings, len(back)) == ("enc", settings, len(bank))
    assert np.array_equal(back.similar_users(queries, 5), bank.similar_users(queries, 5))
    back.append(sequences, sequences.prefixes("valid"), vectors(len(sequences.prefixes("valid")), seed=3))
    assert back.similar_users(queries, 5).max() >= len(bank)


def test_another_encoder_is_refused(sequences):
    bank = new_bank(sequences)
    bank.require_encoder("enc")
    with pytest.raises(
        InputError, match=r"made by encoder enc and cannot serve encoder new; materialise `memory_bank`"
    ):
        bank.require_encoder("new")


def test_more_memories_than_the_bank_holds_are_refused(sequences):
    bank, queries = new_bank(sequences), all_queries(sequences)
    k = len(bank) + 1
    for search in (lambda: bank.similar_users(queries, k), lambda: bank.suitable_items(queries, vectors(ITEMS), k)):
        with pytest.raises(InputError, match=f"memories = {k} exceeds the {len(bank)} memories in the bank; lower it"):
            search()
    assert (bank.similar_users(queries[-1:], len(bank)) >= 0).all()  # a stranger may see them all


def test_impossible_banks_are_refused(sequences):
    with pytest.raises(InputError, match="the memory bank would be empty"):
        new_bank(sequences, prefixes=np.zeros(0, dtype=np.int64))
    with pytest.raises(InputError, match=r"ivf_lists = 128 exceeds the number of memories of the bank, 60; lower it"):
        new_bank(sequences, MemorySettings(index="ivf"), prefixes=sequences.prefixes("train")[:60])


@pytest.mark.parametrize("time_cut", [False, True])
def test_no_queries(sequences, time_cut):
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    nobody = all_queries(sequences)[:0]
    assert bank.similar_users(nobody, 4).shape == (0, 4)
    assert bank.suitable_items(nobody, vectors(ITEMS), 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"index": "flat"}, 1.0, 1.0),
        ({"index": "ivf", "ivf_lists": 32, "ivf_probes": 32}, 1.0, 1.0),  # all lists: exact
        ({"index": "ivf", "ivf_lists": 32, "ivf_probes": 3}, 0.7, 0.98),
        ({"index": "ivf", "ivf_lists": 32, "ivf_probes": 1}, 0.3, 0.7),
        ({"index": "hnsw", "hnsw_links": 16, "hnsw_search": 64}, 0.95, 1.0),
    ],
    ids=str,
)
def test_recall_against_exact_search(settings, low, high):
    sequences = random_sequences([100] * 30, n_items=50, seed=2)
    bank = new_bank(sequences, MemorySettings(**settings))
    queries = Queries.of(sequences, sequences.prefixes("valid"), vectors(30, seed=1))
    recall = bank.recall(queries, 20)
    assert low <= recall <= high
    # The same number from the definition.
    similarity = cosines(bank, queries)
    found = bank.similar_users(queries, 20)
    hits = wanted = 0
    for q in range(len(queries)):
        allowed = brute_allowed(sequences, bank.prefixes, queries, q, False)
        best = sorted(allowed, key=lambda i, q=q: -similarity[q, i])[:20]
        hits += len(set(best) & set(found[q].tolist()))
        wanted += len(best)
    assert recall == pytest.approx(hits / wanted, abs=0.003)


def test_ties_do_not_lower_the_recall(sequences):
    prefixes = sequences.prefixes("train")
    bank = MemoryBank.build(sequences, prefixes, np.ones((len(prefixes), DIM), np.float32), "enc", MemorySettings())
    assert bank.recall(all_queries(sequences), 10) == 1.0


def test_approximate_indexes_keep_the_leakage_rules(sequences):
    for settings in ({"index": "ivf", "ivf_lists": 8, "ivf_probes": 2}, {"index": "hnsw"}):
        bank = new_bank(sequences, MemorySettings(**settings))
        queries = all_queries(sequences)
        queries.vectors[: len(bank)] = bank.representations
        found = bank.similar_users(queries, 9)
        assert bank.allowed(queries, found)[found >= 0].all()
        real = [ids[ids >= 0].tolist() for ids in found]
        assert all(len(set(ids)) == len(ids) for ids in real)


def test_first_allowed_by_hand():
    ids = np.array([[4, 2, 7, 5], [1, 3, -1, -1], [6, 8, 9, 0]])
    allowed = np.array([[False, True, True, True], [True, False, False, False], [False] * 4])
    kept, counts = first_allowed(ids, allowed, 2)
    assert kept.tolist() == [[2, 7], [1, -1], [-1, -1]]
    assert counts.tolist() == [2, 1, 0]


def test_normalised_is_a_copy_of_length_one():
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])
    with unchanged(rows):
        unit_rows = normalised(rows)
    assert unit_rows.dtype == np.float32
    np.testing.assert_allclose(unit_rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    single = np.array([[0.0, 1.0]], np.float32)
    assert not np.shares_memory(normalised(single), single)


@pytest.mark.parametrize(
    ("settings", "gpu_up_to"),
    [({}, 2048), ({"index": "ivf", "ivf_lists": 4, "ivf_probes": 2}, 2048), ({"index": "hnsw"}, 0)],
)
def test_a_gpu_takes_the_searches_that_it_can(sequences, monkeypatch, settings, gpu_up_to):
    """Faiss on a GPU finds at most 2,048 neighbours a query, and has no graph index."""
    bank = new_bank(sequences, MemorySettings(**settings))
    copies = []

    def to_gpu(index, gpus):
        assert gpus == [0]
        copies.append(memory_module.faiss.clone_index(index))
        return copies[-1]

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(memory_module.faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(memory_module.faiss, "index_cpu_to_gpus_list", to_gpu, raising=False)
    for count in (20, 2048, 2049):
        assert (bank._device_index(count) is bank.index) == (count > gpu_up_to)
    assert len(copies) == (gpu_up_to > 0)  # copied once


def test_a_training_worker_searches_on_its_own_gpu(monkeypatch):
    """Its peers search on theirs; elsewhere all are at hand."""
    monkeypatch.setattr(memory_module.faiss, "get_num_gpus", lambda: 4, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert gpus_of_this_process() == [0, 1, 2, 3]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert gpus_of_this_process() == [2]


@pytest.mark.parametrize("products", [1, 100, 2**28])
def test_exact_search_answers_as_faiss_does(monkeypatch, products):
    """In blocks of any size; beyond the vectors that there are, nothing is found."""
    monkeypatch.setattr(exact_module, "_PRODUCTS", products)
    rows, asked = normalised(vectors(40)), normalised(vectors(7, seed=1))
    index = memory_module.faiss.IndexFlatIP(DIM)
    index.add(rows)
    search = exact_module.ExactSearch(rows, torch.device("cpu"))
    assert search.ntotal == 40
    for count in (1, 5, 40):
        score, place = search.search(asked, count)
        expected_score, expected_place = index.search(asked, count)
        assert np.array_equal(place, expected_place)
        np.testing.assert_allclose(score, expected_score, rtol=1e-5, atol=1e-6)
    score, place = search.first(3).search(asked, 5)
    assert np.array_equal(np.sort(place[:, :3], 1), np.tile(np.arange(3), (7, 1)))
    assert (place[:, 3:] == -1).all()
    assert np.isneginf(score[:, 3:]).all()


@pytest.mark.parametrize("time_cut", [False, True])
def test_a_bank_finds_the_same_with_pytorch_on_the_gpu(sequences, monkeypatch, time_cut):
    """Where Faiss has no GPU: `ExactSearch`, here on a CPU that passes for one."""
    bank = new_bank(sequences, MemorySettings(time_cut=time_cut))
    queries = all_queries(sequences)
    expected = bank.similar_users(queries, 5)
    assert (expected >= 0).mean() > 0.5
    used = []

    class OnCpu(exact_module.ExactSearch):
        def __init__(self, rows, device):
            assert device.type == "cuda"
            used.append(len(rows))
            super().__init__(rows, torch.device("cpu"))

    monkeypatch.setattr(memory_module, "worker_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(memory_module, "ExactSearch", OnCpu)
    assert np.array_equal(bank.similar_users(queries, 5), expected)
    assert used == [len(bank)]
    if not time_cut:  # the copy is kept until memories are added
        bank.similar_users(queries, 5)
        assert used == [len(bank)]
        bank.append(sequences, sequences.prefixes("valid"), vectors(len(sequences.prefixes("valid")), seed=3))
        bank.similar_users(queries, 5)
        assert used[1:] == [len(bank)]


def test_new_memories_suit_queries_that_were_asked_before(sequences):
    """What `suitable_items` keeps between calls is forgotten when memories are added."""
    train, valid = sequences.prefixes("train"), sequences.prefixes("valid")
    bank = new_bank(sequences)
    queries = all_queries(sequences)
    embeddings = np.random.default_rng(1).standard_normal((ITEMS, DIM)).astype(np.float32)
    first = bank.suitable_items(queries, embeddings, 5)
    assert np.array_equal(bank.suitable_items(queries, embeddings, 5), first)
    copy = bank.copy()
    copy.append(sequences, valid, vectors(len(valid), seed=2))
    fresh = MemoryBank.build(
        sequences,
        np.concatenate([train, valid]),
        np.concatenate([vectors(len(train)), vectors(len(valid), seed=2)]),
        "enc",
        MemorySettings(),
    )
    after = copy.suitable_items(queries, embeddings, 5)
    assert np.array_equal(after, fresh.suitable_items(queries, embeddings, 5))
    assert not np.array_equal(after, first)
    assert np.array_equal(bank.suitable_items(queries, embeddings, 5), first)
