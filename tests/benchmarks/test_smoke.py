"""The benchmarks run at tiny size, and their plain sides compute what ours do: without that, no ratio would count."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import report, rules
from benchmarks.__main__ import main
from benchmarks.measure import Excerpt, alternate, machine, peak_mib
from benchmarks.plain.raserec import PlainFinetuning, PlainPretraining, plain_ranks
from benchmarks.raserec import BENCHMARKS as ON_SEQUENCES
from benchmarks.raserec import GROWTH, overhead, scaling
from benchmarks.registry import BENCHMARKS, ON_FILMS
from benchmarks.registry import ON_SEQUENCES as SEQUENTIAL
from benchmarks.rella import prompts, retrieval
from benchmarks.workloads import (
    ML_1M_SPREAD,
    ML_25M_SPREAD,
    Effort,
    Setup,
    all_films,
    amazon_beauty,
    films,
    histories,
    read_tables,
    synthetic,
    workloads,
)
from rarec.data.sequences import Windows, single_windows
from rarec.data.sources.demo import DemoSettings
from rarec.data.spec import builtin_specs
from rarec.metrics.ranking import full_ranking
from rarec.raserec.encoders import build_encoder
from rarec.raserec.finetune import FinetuneObjective
from rarec.raserec.pretrain import PretrainLoss, PretrainObjective
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.retrieval.memory import MemoryBank
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits

CPU = torch.device("cpu")
TINY = Effort(
    plain_steps=1, our_steps=2, rounds=1, queries=40, users=10, scale_users=40, scale_items=50, multiples=(1, 3),
    retrieval_users=20, retrieval_items=300, retrieval_interactions=2000, plain_retrievals=200,
    prompts=100, plain_prompts=60, scored=256, tuned=40, ctr_interactions=20_000, ctr_items=2000,
)  # fmt: skip
STAGE1 = PretrainSettings(
    dim=16, inner_dim=24, hidden_dropout=0, attention_dropout=0, max_length=9, contrastive_weight=0.3, temperature=0.7
)
STAGE2 = FinetuneSettings(memories=5, alpha=0.4, beta=1, inner_dim=24, dropout=0)


@pytest.fixture
def data_folder():
    folder = Path(os.environ.get("RAREC_DATA", "../shared/datasets"))
    if not (folder / "amazon-beauty").is_dir():
        pytest.skip(f"no folder amazon-beauty in {folder}")
    return folder


@pytest.fixture
def sequences():
    return synthetic(users=25, items=30)


@pytest.fixture
def encoder(sequences):
    torch.manual_seed(5)
    made = build_encoder(sequences.n_items, STAGE1, DropoutBits())
    return with_visible_weights(made)


def with_visible_weights(module):
    """Weights, biases too, large enough for a difference to show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def test_plain_pretraining_is_our_loss_and_gradient(sequences, encoder):
    plain = PlainPretraining(sequences, encoder, STAGE1)
    rows = np.random.default_rng(0).permutation(len(plain.prefixes))[:20]
    expected = plain.loss(rows)
    expected.backward()

    prefixes = plain.prefixes[rows]
    assert np.max(prefixes - sequences.offsets[sequences.user_of[prefixes]]) > STAGE1.max_length  # some are cut
    order = np.argsort(prefixes)
    own = encoder.windows(sequences, prefixes[order])
    partners = single_windows(sequences, plain.partners[rows][order], STAGE1.max_length, 1)
    batch = encoder.pack(sequences, Windows.join(own, partners))
    targets = torch.from_numpy(sequences.next_items(prefixes[order]))
    total, _ = PretrainLoss(encoder, STAGE1.contrastive_weight, STAGE1.temperature)((batch, targets))
    (total / len(rows)).backward()

    torch.testing.assert_close(total.detach() / len(rows), expected.detach(), rtol=1e-5, atol=1e-5)
    assert encoder.item_embedding.grad.abs().max() > 0.01
    torch.testing.assert_close(
        encoder.item_embedding.grad, plain.encoder.item_embedding.weight.grad, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("all_memories", [False, True])
def test_plain_finetuning_is_our_loss_and_gradient(sequences, encoder, all_memories):
    encoder.eval()
    prefixes = sequences.prefixes("train")
    # With K the whole bank every list has gaps, since no query sees its own target or what follows it.
    settings = STAGE2.model_copy(update={"memories": len(prefixes)}) if all_memories else STAGE2
    bank = MemoryBank.build(sequences, prefixes, encoder.encode(sequences, prefixes).numpy(), "e", MemorySettings())
    objective = FinetuneObjective(sequences, encoder, bank, settings, CPU, lambda **_: None)
    channel = with_visible_weights(objective.model.module.channel1)
    plain = PlainFinetuning(sequences, encoder, bank, channel, settings)
    rows = np.arange(0, len(prefixes), 3)
    expected = plain.loss(rows)
    expected.backward()

    chosen = torch.from_numpy(rows)
    batch = (objective.queries[chosen], objective.neighbours[chosen], objective.targets[chosen])
    total, _ = objective.model(batch)
    (total / len(rows)).backward()

    torch.testing.assert_close(total.detach() / len(rows), expected.detach(), rtol=1e-5, atol=1e-5)
    assert channel.up.weight.grad.abs().max() > 1e-4
    torch.testing.assert_close(channel.up.weight.grad, plain.channel.up.weight.grad, rtol=1e-4, atol=1e-6)


def test_plain_ranks_and_lists_are_ours():
    generator = torch.Generator().manual_seed(0)
    vectors, items = torch.randn(12, 6, generator=generator), torch.randn(40, 6, generator=generator)
    rng = np.random.default_rng(0)
    targets, seen = rng.integers(0, 40, 12), [rng.permutation(40)[:n] for n in range(12)]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in seen])])
    columns = [torch.from_numpy(column) for column in (targets, offsets, np.concatenate(seen))]
    ours = full_ranking(vectors, items, *columns, top_n=5)
    ranks, masked, lists = zip(*plain_ranks(vectors.numpy(), items.numpy(), targets, seen, top_n=5), strict=True)
    assert list(ranks) == ours.rank.tolist()
    assert list(masked) == ours.rank_masked.tolist()
    assert ranks != masked
    assert [best.tolist() for best, _ in lists] == ours.top_items.tolist()
    assert [best.tolist() for _, best in lists] == ours.top_items_masked.tolist()


@pytest.fixture(scope="module")
def tiny_films():
    spec = builtin_specs()["demo"]
    demo = DemoSettings(users=40, items=150, interactions_per_user=40)
    spec = spec.model_copy(update={"sources": (spec.sources[0].model_copy(update={"demo": demo}),)})
    return films(spec, read_tables(spec, None))


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in SEQUENTIAL])
def test_every_rella_benchmark_measures_something(name, tiny_films, monkeypatch):
    """And both sides of each give the same, or it raises."""
    monkeypatch.setattr(prompts, "CHUNK", 64)  # so that there is more than one
    figures = BENCHMARKS[name](Setup({}, TINY, {"tiny": tiny_films} if name in ON_FILMS else {}))
    expected = {"subr": ["D = 512", "D = 128"], "ctr_scale": ["0.02 million"]}
    expected["tables"] = ["0.005 million", "0.02 million", "0.08 million"]
    assert list(figures) == expected.get(name, ["tiny"])
    for column in figures.values():
        for row, value in column.items():
            if row.endswith((", s", "median", "best")):
                assert value > 0, row
            if "ratio" in row:
                assert 0 < value < 10_000, row
            if "share" in row and not math.isnan(value):
                assert 0 <= value <= 1, row
        if name in ("subr", "ctr_scale"):
            assert min(value for row, value in column.items() if row.startswith("share of equal lists")) > 0.98
    if name == "subr":
        assert figures["D = 512"]["samples, N"] == 2000 - 5 * 20
    if name == "prompts":
        assert 10 < figures["tiny"]["behaviours a prompt, mean"] <= 30
    if name in ("scoring", "tuning"):
        assert figures["tiny"]["padding, ours, share"] < 0.7 * figures["tiny"]["padding, plain, share"]


@pytest.mark.usefixtures("worker")
def test_padding_of_scoring_is_that_of_the_batches_scored(tiny_films, monkeypatch):
    """Not that of the setting, which allows more than `CpuDecoder` takes; here every prompt goes alone."""
    monkeypatch.setattr("rarec.rella.scoring.BATCH_TOKENS", 1)
    figures = BENCHMARKS["scoring"](Setup({}, TINY, {"tiny": tiny_films}))["tiny"]
    assert figures["padding, ours, share"] == 0
    assert figures["padding, plain, share"] > 0.1


def test_lists_that_differ_beyond_rounding_are_no_measurement():
    vectors = np.eye(4, dtype=np.float32)
    items = np.array([0, 1, 0])
    kept = np.array([[0, 2]], dtype=np.uint16)
    position = np.array([2])
    assert retrieval._share_of_equal(vectors, items, position, kept, [np.array([0])]) == 1
    with pytest.raises(AssertionError, match="2"):
        retrieval._share_of_equal(vectors, items, position, kept, [np.array([1])])
    with pytest.raises(AssertionError, match="2"):
        retrieval._share_of_equal(vectors, items, position, kept, [np.array([0, 1])])


def test_histories_have_the_shape_of_movielens():
    small = histories(6040, 3706, 1_000_209, ML_1M_SPREAD)
    position = small.targets()
    assert len(small.items) == 1_000_209
    assert len(position) == 970_009
    assert 20 <= small.lengths.min() < 25
    assert 85 < np.median(small.lengths) < 120  # 96
    assert 190 < small.mean_history(position) < 215  # 201
    assert len(np.unique(small.items[: small.offsets[1]])) == small.offsets[1]
    large = histories(16_254, 59_047, 2_500_010, ML_25M_SPREAD)
    assert 450 < large.mean_history(large.targets()) < 750  # 590


def test_prompts_are_cut_to_five_to_thirty_behaviours(tiny_films):
    whole, cut = (source.retrieved for source in (tiny_films.source, tiny_films.varied))
    count = (cut > 0).sum(1)
    assert count.min() == 5
    assert count.max() == 30
    assert len(np.unique(count)) == 26
    kept = cut > 0
    assert np.array_equal(cut[kept], whole[kept])
    assert ((whole > 0).sum(1) > count).any()
    assert (kept == (np.arange(30) >= 30 - count[:, None])).all()  # the latest of them


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", ON_SEQUENCES)
def test_every_benchmark_measures_something(name):
    figures = BENCHMARKS[name](Setup({"tiny": synthetic(users=20, items=50)}, TINY))
    assert set(figures) == ({"1x", "3x", GROWTH} if name == "scaling" else {"tiny"})
    for title, column in figures.items():
        for row, value in column.items():
            if title != GROWTH and (row.endswith((", s", "median", "best")) or "ratio" in row):
                assert 0 < value < 1000, row
    if name == "stage1":
        assert 1 < figures["tiny"]["tokens a prefix, ours"] < figures["tiny"]["tokens a prefix, plain"] == 150
    if name == "memory":
        assert figures["tiny"]["share of equal similarities in the sample"] > 0.98
    if name == "scaling":
        assert figures["3x"]["interactions"] > 2 * figures["1x"]["interactions"]
        assert 0 < figures["3x"]["inverted lists, recall@20"] <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_a_launched_training_is_compared_with_a_bare_loop():
    figures = BENCHMARKS["launched"](Setup({"tiny": synthetic(users=20, items=50)}, TINY))["tiny"]
    assert 0 < figures["epoch in a bare loop, s, best"] <= figures["epoch in a bare loop, s, median"] < 1000
    assert 0 < figures["start, end and checkpoints of a training, s"] < 1000


def test_growth_is_the_slope_of_the_logarithms(monkeypatch):
    """A stand-in that takes interactions squared seconds has exponent 2."""

    def quadratic(sequences, column):
        column |= {"interactions": len(sequences.items), "all, s": 3.0 * len(sequences.items) ** 2, "not seconds": 1}

    monkeypatch.setattr("benchmarks.raserec._scale", quadratic)
    assert scaling(Setup({}, TINY))[GROWTH] == {"all, s": pytest.approx(2)}


def test_an_excerpt_ends_after_its_steps_and_gives_the_other_side_its_turn(sequences):
    turns = []
    settings = PretrainSettings(dim=8, inner_dim=8, batch_size=16)
    excerpt = Excerpt(PretrainObjective(sequences, settings, CPU), 2, lambda: turns.append(1))
    assert excerpt.start_epoch(0) == 2
    batches = list(excerpt.batches())
    assert len(batches) == 2
    assert excerpt.samples == [sum(samples for _, samples in batches)]
    assert turns == []
    assert excerpt.validate() == {"NDCG@10": 0.0}
    assert turns == [1]


def test_sides_take_turns_and_all_rounds_count():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_peak_memory_forgets_what_was_before():
    block = torch.ones(64 << 18)  # 64 MiB
    del block
    peak = peak_mib(lambda: torch.ones(24 << 18).sum())
    assert 20 < peak < 50 or math.isnan(peak)


def test_synthetic_sequences_have_the_shape_of_beauty():
    sequences = synthetic(users=4000, items=5000)
    lengths = sequences.lengths
    assert (lengths.min(), np.median(lengths)) == (5, 6)
    assert 100 < lengths.max() <= 200
    assert 8.5 < lengths.mean() < 9.5
    assert len(np.unique(sequences.items)) > 0.9 * 5000


def test_results_tell_their_command_machine_and_protocol(tmp_path):
    results = {"overhead": {"tiny": {"epoch, s": 1234.5, "ratio": 0.12345, "users": 7, "peak": float("nan")}}}
    report.write(tmp_path / "new" / "x", results, "python -m benchmarks overhead", machine(1), "today", {"rounds": 1})
    page = (tmp_path / "new" / "x.md").read_text()
    assert page.startswith("    python -m benchmarks overhead\n\nMeasured today on: processor ")
    assert overhead.__doc__.split("\n")[0] in page
    assert "| epoch, s | 1,234 |" in page or "| epoch, s | 1,235 |" in page
    assert "| ratio | 0.123 |\n| users | 7 |\n| peak | – |" in page
    record = json.loads((tmp_path / "new" / "x.json").read_text())
    assert record["results"]["overhead"]["tiny"] == {"epoch, s": 1234.5, "ratio": 0.12345, "users": 7, "peak": None}
    assert record["machine"]["threads"] == 1


@pytest.mark.usefixtures("worker")
def test_the_command_prints_and_keeps_results(tmp_path, monkeypatch, capsys):
    def fake(setup):
        """What it measures."""
        return {name: {"steps": setup.effort.our_steps} for name in setup.workloads}

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(BENCHMARKS, "overhead", fake)
    monkeypatch.chdir(tmp_path)
    options = {"data": Path("nowhere"), "threads": 1, "steps": 2, "our_steps": 3, "rounds": 1}
    main(["overhead"], **options, output=Path("kept/all.json"))
    assert "no folder amazon-beauty in nowhere: synthetic sequences only" in (said := capsys.readouterr().out)
    assert "| steps | 3 |" in said
    command = "python -m benchmarks overhead --data nowhere --threads 1 --steps 2 --our-steps 3 --rounds 1"
    record = json.loads(Path("kept/all.json").read_text())
    assert record["command"] == f"{command} --output all.json"
    assert record["results"] == {"overhead": {"synthetic": {"steps": 3}}}
    assert "What it measures." in Path("kept/all.md").read_text()

    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path / "results")
    main(["overhead"], **options, record=True)
    assert json.loads(Path("results/overhead.json").read_text())["command"] == f"{command} --record"
    assert sorted(path.name for path in Path("results").iterdir()) == ["overhead.json", "overhead.md"]

    monkeypatch.setitem(BENCHMARKS, "subr", lambda setup: {"size": {"n": setup.effort.ctr_interactions}})
    capsys.readouterr()
    main(["subr"], **options, interactions=5000, output=Path("kept/subr.json"))
    assert "no folder" not in capsys.readouterr().out  # nothing is read for it
    assert json.loads(Path("kept/subr.json").read_text())["command"].endswith(
        "--rounds 1 --interactions 5000 --output subr.json"
    )

    with pytest.raises(SystemExit, match=r"error: unknown benchmark 'stage3'; known: stage1, .*, overhead"):
        main(["stage3"], **options)


def test_without_a_data_folder_only_synthetic_data_run(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.workloads.read_tables", lambda spec, data: spec.name)
    monkeypatch.setattr("benchmarks.workloads.films", lambda spec, tables, default_model=False: tables)
    assert list(workloads(tmp_path)) == ["synthetic"]
    assert all_films(tmp_path) == {"demo": "demo", "demo, default model": "demo"}
    (tmp_path / "ml-100k").mkdir()
    assert all_films(tmp_path) == {"demo": "demo", "ml-100k": "ml-100k", "demo, default model": "demo"}


@pytest.mark.realdata
def test_beauty_is_the_published_one(data_folder):
    sequences = amazon_beauty(data_folder)
    assert (sequences.n_users, sequences.n_items, len(sequences.items)) == (22_363, 12_101, 198_502)


def test_rules_are_simulated():
    drift = rules.drift(20, sizes=(100, 2000))
    assert list(drift) == ["100 events", "2,000 events"]
    asked = {size: [float(cell.split("%")[0]) for cell in column.values()] for size, column in drift.items()}
    assert asked["2,000 events"][-1] == 100 > asked["2,000 events"][0]  # a fall by half is seen
    passed = rules.promotion(20, sizes=(2000,))["2,000 users"]
    assert float(passed["worse by 0%"].split("%")[0]) > float(passed["worse by 20%"].split("%")[0]) == 0
