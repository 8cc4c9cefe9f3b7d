"""The GPU benchmarks run on the CPU in small shapes, so that they work on the day a GPU is at hand."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu import llama, raserec
from benchmarks.gpu.__main__ import FAILED, NO_GPU_EXIT, RATE, GpuEffort, Part, measure, yardstick
from benchmarks.gpu.llama import SHAPES, LlamaEffort, LlamaShape, RandomPrompts
from benchmarks.measure import machine
from benchmarks.report import write
from benchmarks.workloads import synthetic
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.rella.language_model import last_logits, pad

CPU = torch.device("cpu")
SMALL = LlamaShape(dim=32, inner=48, layers=2, heads=4, vocabulary=120, longest=128)
TINY = GpuEffort(
    products=(32, 64), repeats=2, rounds=2, shapes=(("7B", SMALL), ("13B", SMALL)), lengths=(40,),
    llama=LlamaEffort(step_tokens=280, steps=2, epochs=2, scored_tokens=400, rounds=1), banks=((300, 8),),
    few_queries=50, engines=((0, "fp32"), (2, "bf16")),
    stage1=PretrainSettings(dim=8, inner_dim=8, layers=1, epochs=2), stage2=FinetuneSettings(memories=3, epochs=2),
)  # fmt: skip


def here(case):
    return case()


def sequences():
    return synthetic(users=20, items=30)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("part", [part for part in Part if part is not Part.beauty])
def test_every_part_measures_something(part, tmp_path):
    kept = []
    figures = measure(part, TINY, here, lambda some: kept.append(len(some)), sequences)
    titles = {
        Part.matmul: [],
        Part.tuning_7b: ["7B, 40 tokens, ZeRO-2", "7B, 40 tokens, ZeRO-3"],
        Part.tuning_13b: ["13B, 40 tokens, ZeRO-2", "13B, 40 tokens, ZeRO-3"],
        Part.scoring: ["7B, 40 tokens", "13B, 40 tokens"],
        Part.bank: ["300 memories"],
        Part.engines: ["ZeRO-0, fp32", "ZeRO-2, bf16"],
    }[part]
    chip = [] if part in (Part.bank, Part.engines) else ["chip"]
    assert list(figures) == chip + titles
    assert kept == list(range(1, len(figures) + 1))  # after each case
    for column in figures.values():
        assert FAILED not in column, column
        for row, value in column.items():
            if "second" in row or row.endswith((", s", "TFLOP/s")):
                assert 0 < value < math.inf, row
            if "share of equal lists" in row:
                assert value > 0.98
    write(tmp_path / "x", {"x": figures}, "command", machine(1), "now", gpu.plain_effort(TINY), {"x": gpu.ABOUT[part]})
    assert json.loads((tmp_path / "x.json").read_text())["effort"]["stage1"]["dim"] == 8
    assert gpu.ABOUT[part] in (tmp_path / "x.md").read_text()


@pytest.mark.usefixtures("worker")
def test_a_case_that_fails_leaves_the_others(monkeypatch):
    tried = []

    def case(shape, length, rate, effort):
        tried.append(length)
        if len(tried) == 1:
            raise RuntimeError("CUDA out of memory")
        return {"prompts a second": 1.0}

    monkeypatch.setattr(llama, "scoring_case", case)
    figures = measure(Part.scoring, TINY, here, lambda some: None, sequences)
    assert tried == [40, 40]
    assert "out of memory" in figures["7B, 40 tokens"][FAILED]
    assert figures["13B, 40 tokens"] == {"prompts a second": 1.0}


def test_the_yardstick_is_the_best_size():
    column = yardstick(TINY)
    assert column[RATE] == max(value for row, value in column.items() if row != RATE)
    assert len(column) == 3


def test_operations_are_counted_as_stated():
    """By hand, for one layer of width 2: matrices of 2 x 2 (four) and 2 x 3 (three)."""
    shape = LlamaShape(dim=2, inner=3, layers=1, heads=1, vocabulary=5)
    assert shape.matrices == 4 * 4 + 3 * 6
    pairs = 1 + 2 + 3  # of three tokens, each with itself and those before
    attention = pairs * (2 * 2 + 2 * 2)  # a product and a weighted sum over width 2
    head = 2 * 5 * 2
    assert shape.forward_flops(3) == 2 * 34 * 3 + attention + head
    assert shape.tuning_flops(3) == shape.forward_flops(3) + 2 * 34 * 3 + 2 * attention + head


def test_the_forward_count_is_pytorchs_own():
    """Which counts the whole square of the attention."""
    from torch.utils.flop_counter import FlopCounterMode

    prompts = RandomPrompts.of(2, 0, 70, SMALL)
    made = prompts.tokens.prompts(prompts.rows())
    batch = pad(made.tokens, made.lengths, np.arange(2), CPU)
    model = SMALL.model(CPU)
    model.set_attn_implementation("eager")  # the counter knows no other on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        last_logits(model, batch)
    square = 4 * SMALL.layers * SMALL.dim * 70 * 70
    assert counter.get_total_flops() == 2 * (SMALL.forward_flops(70) - SMALL.attention_flops(70) + square)


@pytest.mark.parametrize(("name", "billion"), [("7B", 6.74), ("13B", 13.02)])
def test_the_large_ones_have_llamas_sizes(name, billion):
    weights = sum(parameter.numel() for parameter in llama.shape_parameters(SHAPES[name]))
    assert weights / 1e9 == pytest.approx(billion, abs=0.005)
    assert (
        weights
        == SHAPES[name].matrices + 2 * 32_000 * SHAPES[name].dim + (2 * SHAPES[name].layers + 1) * SHAPES[name].dim
    )


@pytest.mark.parametrize("length", [34, 40, 700, 2000])
def test_prompts_have_the_length_asked_for(length):
    prompts = RandomPrompts.of(5, 2, length, SHAPES["7B"])
    made = prompts.tokens.prompts(prompts.rows())
    assert made.lengths.tolist() == [length] * 7
    assert made.dropped.sum() == 0
    assert prompts.source.samples.rows("valid") == slice(5, 7)
    assert sorted(prompts.source.samples.label[5:]) == [False, True]


def test_lists_that_differ_must_be_as_similar():
    vectors = np.eye(3, dtype=np.float32)
    vectors[1] = vectors[0]
    asked = vectors[:1]
    lists = [np.array([row]) for row in ([0, 2], [1, 2], [2, 1])]
    assert raserec.share_of_equal(vectors, asked, lists[0], lists[0]) == 1
    assert raserec.share_of_equal(vectors, asked, lists[1], lists[0]) == 0
    with pytest.raises(AssertionError):
        raserec.share_of_equal(vectors, asked, np.array([[2, 2]]), lists[0])
    with pytest.raises(AssertionError):
        raserec.share_of_equal(vectors, asked, np.array([[0, 1]]), lists[0])


def test_without_a_gpu_the_command_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main(Part.matmul, output=tmp_path)
    assert ended.value.code == NO_GPU_EXIT
    said = capsys.readouterr()
    assert said.err == "error: this machine has no GPU that PyTorch can use; see docs/gpu.md\n"
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("worker")
def test_the_command_keeps_figures_command_and_machine(tmp_path, monkeypatch, capsys):
    """On a machine that passes for one with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "gpu_facts", lambda: {"GPU": "of a test"})
    monkeypatch.setattr(gpu, "GpuEffort", lambda: TINY)
    monkeypatch.setattr(gpu, "in_own_process", lambda case, threads, device: case())
    monkeypatch.setattr(sys, "argv", ["gpu.py", "bank", "--code", "abc"])
    gpu.main(Part.bank, output=tmp_path, code="abc")
    record = json.loads((tmp_path / "gpu-bank.json").read_text())
    assert record["command"] == "python -m benchmarks.gpu bank --code abc"
    assert (record["machine"]["GPU"], record["machine"]["code"]) == ("of a test", "abc")
    assert "| 300 memories |" in capsys.readouterr().out

    def fails(case, threads, device):
        raise RuntimeError("no more")

    monkeypatch.setattr(gpu, "in_own_process", fails)
    with pytest.raises(SystemExit, match="error: 1 of 1 cases failed: 300 memories"):
        gpu.main(Part.bank, output=tmp_path)
    assert "no more" in (tmp_path / "gpu-bank.md").read_text()


def test_whole_runs_are_summed_up_and_one_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def run(run, homes, seed):
        return {FAILED: "exit code 1"} if seed == 3 else {"whole run, s": 10.0 * seed}

    monkeypatch.setattr(raserec, "_whole_run", run)
    kept = []
    figures = raserec.whole_runs(raserec.Run(tmp_path), (1, 2, 3), 2, tmp_path, lambda some: kept.append(1))
    assert list(figures) == ["seed 1", "seed 2", "seed 3", "mean", "standard deviation"]
    assert figures["mean"] == {"runs at once": 2, "whole run, s": 15}
    assert figures["standard deviation"]["whole run, s"] == pytest.approx(50**0.5)
    assert len(kept) == 4


@pytest.mark.slow
def test_a_whole_run_is_read_off_the_pipeline(tmp_path):
    few = (("epochs", 1), ("dim", 8), ("inner_dim", 8))
    run = raserec.Run(tmp_path / "data", "demo", stage1=few, stage2=(("epochs", 1),))
    figures = raserec.whole_runs(run, (7,), 1, tmp_path / "homes", lambda some: None)
    column = figures["seed 7"]
    assert FAILED not in column, column
    for number in (1, 2):
        assert column[f"stage {number}, epochs"] == 1
        assert 0 < column[f"stage {number}, an epoch, s"] < column[f"stage {number}, all, s"] < column["whole run, s"]
    assert sum(row.endswith("NDCG@10") for row in column) >= 4
    assert all(0 <= value <= 1 for row, value in column.items() if row.endswith("@10"))


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own():
    assert gpu.in_own_process(partial(yardstick, TINY), 1, "cpu")[RATE] > 0
