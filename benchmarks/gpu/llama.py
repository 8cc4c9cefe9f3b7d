"""LoRA tuning and scoring of large Llamas with random weights, through the project's own code, in shares of the chip.

Floating-point operations are those that the mathematics asks for, a multiplication and an addition being two. Of a
prompt of T tokens, with N weights in the layers' matrices, L layers of width D, and V words:

- forward: 2·N·T, attention 2·L·D·T·(T + 1) (a token looks at itself and what comes before it), and the logits
  behind the prompt, 2·V·D;
- backward: what goes back through the frozen matrices, 2·N·T and 2·V·D, and twice the attention's. Weights that are
  frozen have no gradient. LoRA's own matrices (under 0.1 %) and what gradient checkpointing computes a second time do
  not count.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Column, silent
from rarec.data.ctr import CtrSamples
from rarec.rella.language_model import Answers, last_logits, pad
from rarec.rella.prompt_source import PromptSource
from rarec.rella.scoring import score
from rarec.rella.training_samples import TrainingSamples
from rarec.rella.tuning import TuningObjective, TuningSettings, add_adapter
from rarec.text.prompts import PromptParts
from rarec.text.tokens import PromptTokens, TokenTable
from rarec.training.engine import worker_device
from rarec.training.engine_settings import EngineSettings
from rarec.training.fit import fit
from rarec.types import IntArray

BEHAVIOURS = 30  # K
_LINES, _ITEMS = 1000, 1000  # texts that prompts are made of
_MOST_PIECE = 16_384  # tokens
_CHECKPOINTED_PIECE = 8192  # where not even one prompt's activations fit
_USABLE = 0.85  # of the memory that is free beside the weights: fragments, ZeRO's buffers


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama."""

    dim: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 32_000
    longest: int = 2048

    @property
    def matrices(self) -> int:
        """N, weights in the layers' matrices."""
        return self.layers * (4 * self.dim**2 + 3 * self.dim * self.inner)

    def attention_flops(self, tokens: int) -> int:
        """Of the forward pass of one prompt."""
        return 2 * self.layers * self.dim * tokens * (tokens + 1)

    def forward_flops(self, tokens: int) -> int:
        """Of one prompt whose last place alone is asked for logits."""
        return 2 * self.matrices * tokens + self.attention_flops(tokens) + 2 * self.vocabulary * self.dim

    def tuning_flops(self, tokens: int) -> int:
        """Forward and backward of one prompt, the matrices frozen."""
        return 2 * self.forward_flops(tokens) + self.attention_flops(tokens)

    def model(self, device: torch.device) -> Any:
        """One with random weights, made on ``device``, in bfloat16 as `load_model` would have it on a GPU."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.dim,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.longest,
        )
        torch.manual_seed(0)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


SHAPES = {
    "7B": LlamaShape(dim=4096, inner=11_008, layers=32, heads=32),
    "13B": LlamaShape(dim=5120, inner=13_824, layers=40, heads=40),
}


@dataclass(frozen=True)
class LlamaEffort:
    """How much is measured."""

    step_tokens: int = 32_768
    """Tokens of a training step, about."""
    steps: int = 4
    """Steps an epoch."""
    epochs: int = 3
    """Epochs; the first warms up."""
    scored_tokens: int = 262_144
    """Tokens scored a round."""
    rounds: int = 2
    """Measured rounds of scoring; one more, shorter, warms up."""


@dataclass(frozen=True)
class RandomPrompts:
    """Samples whose prompts are all of one length, and their tokens; half of them are liked."""

    source: PromptSource
    tokens: PromptTokens

    @classmethod
    def of(cls, train: int, valid: int, length: int, shape: LlamaShape, seed: int = 0) -> "RandomPrompts":
        """``train`` and ``valid`` samples, of as many users, with prompts of ``length`` tokens."""
        rng = np.random.default_rng(seed)
        users = train + valid
        offsets = np.arange(users + 1) * (BEHAVIOURS + 1)
        label = np.arange(users) % 2 == 0
        samples = CtrSamples(offsets, offsets[:-1] + BEHAVIOURS, label, np.array([0, train, users, users]))
        parts = PromptParts([], 0, users + 1, users + 1 + _LINES, rng.integers(0, _LINES, int(offsets[-1])))
        distances = np.tile(np.arange(BEHAVIOURS, 0, -1), (users, 1))
        items = rng.integers(0, _ITEMS, int(offsets[-1]))
        each, rest = divmod(length - 1, BEHAVIOURS + 3)  # one token stands before every prompt
        lengths = np.full(users + 1 + _LINES + _ITEMS, each)
        lengths[-_ITEMS:] += rest
        table = TokenTable(
            np.concatenate([[0], lengths.cumsum()]),
            rng.integers(3, shape.vocabulary, int(lengths.sum())).astype(np.int32),
        )
        before, after = np.ones(1, dtype=np.int32), np.zeros(0, dtype=np.int32)
        return cls(
            PromptSource(samples, items, parts, distances, distances),
            PromptTokens(table, before, after, shape.longest),
        )

    def rows(self) -> IntArray:
        """(N, K + 3) parts of all prompts."""
        return self.source.rows(np.arange(len(self.source.samples)), True)


def tuning_case(shape: LlamaShape, zero_stage: int, length: int, rate: float, effort: LlamaEffort) -> Column:
    """A LoRA tuning with the paper's settings but for batches and pieces; ``rate``: the chip's, in FLOP/s."""
    device = worker_device()
    model = shape.model(device)
    prompts_a_step = max(2, effort.step_tokens // length)
    prompts = RandomPrompts.of(prompts_a_step * effort.steps, 2, length, shape)
    piece, checkpointing, model = _piece(model, prompts, length, device)
    settings = TuningSettings(
        batch_size=prompts_a_step,
        epochs=effort.epochs,
        patience=effort.epochs,
        piece_tokens=piece,
        validation_prompts=2,
        gradient_checkpointing=checkpointing,
    )
    shots = TrainingSamples(np.arange(prompts_a_step * effort.steps), np.full(prompts_a_step * effort.steps, True))
    adapted = add_adapter(model, settings, seed=0)
    objective = TuningObjective(adapted, prompts.source, prompts.tokens, shots, Answers(3, 4), settings, 0, device)
    assert (objective.lengths == length).all()
    _forget_peak(device)
    engine = EngineSettings(precision="bf16", zero_stage=zero_stage, checkpoint_minutes=0)
    with TemporaryDirectory() as folder:
        output = Path(folder)
        summary = fit(
            objective, settings, stage="tuning", output=output, checkpoint=output, report=silent, engine=engine
        )
    losses = [record["loss"] for record in summary["history"]]
    assert np.isfinite(losses).all(), losses
    measured = [record["train_seconds"] for record in summary["history"][1:]]
    seconds = min(measured) / effort.steps
    flops = prompts_a_step * shape.tuning_flops(length) / seconds
    return {
        "weights, billion": sum(p.numel() for p in shape_parameters(shape)) / 1e9,
        "tokens a prompt": length,
        "ZeRO stage": zero_stage,
        "prompts a step": prompts_a_step,
        "tokens of a piece, at most": piece,
        "gradient checkpointing": "yes" if checkpointing else "no",
        "steps measured": effort.steps * len(measured),
        "a step, best epoch, s": seconds,
        "a step, worst epoch, s": max(measured) / effort.steps,
        "tokens a second": prompts_a_step * length / seconds,
        "TFLOP/s": flops / 1e12,
        "share of the measured bf16 rate": flops / rate,
        "peak GPU memory, GiB": _peak_gib(device),
    }


def scoring_case(shape: LlamaShape, length: int, rate: float, effort: LlamaEffort) -> Column:
    """`score` with the language model alone, and with a LoRA adapter beside its weights as after tuning."""
    device = worker_device()
    model = shape.model(device)
    count = max(2, effort.scored_tokens // length)
    prompts = RandomPrompts.of(count, 0, length, shape)
    rows = prompts.rows()
    column: Column = {"tokens a prompt": length, "prompts a round": count, "rounds": effort.rounds}
    _forget_peak(device)
    for name in ("language model", "with adapter"):
        if name == "with adapter":
            model = add_adapter(model, TuningSettings(), seed=0).eval()
        score(model, prompts.tokens, rows[: max(2, count // 8)], Answers(3, 4), device)
        seconds = []
        for _ in range(effort.rounds):
            started = time.perf_counter()
            probability, dropped = score(model, prompts.tokens, rows, Answers(3, 4), device)
            seconds.append(time.perf_counter() - started)
            assert not dropped.any()
            assert ((probability > 0) & (probability < 1)).all()
        best = min(seconds)
        column |= {
            f"prompts a second, {name}": count / best,
            f"tokens a second, {name}": count * length / best,
            f"TFLOP/s, {name}": count * shape.forward_flops(length) / best / 1e12,
            f"share of the measured bf16 rate, {name}": count * shape.forward_flops(length) / best / rate,
        }
    return {**column, "peak GPU memory, GiB": _peak_gib(device)}


def shape_parameters(shape: LlamaShape) -> list[torch.Tensor]:
    """All weights of the model, without memory."""
    return list(shape.model(torch.device("meta")).parameters())


def _piece(model: Any, prompts: RandomPrompts, length: int, device: torch.device) -> tuple[int, bool, Any]:
    """How many tokens of activations fit beside the weights, whether only gradient checkpointing makes room for a
    prompt, and the model as it was.
    """
    if device.type != "cuda":
        return 4 * length, True, model
    adapted = add_adapter(model, TuningSettings(), seed=0).train()
    made = prompts.tokens.prompts(prompts.rows()[:1])
    batch = pad(made.tokens, made.lengths, np.arange(1), device)
    _forget_peak(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = last_logits(adapted, batch)
        logits.float().sum().backward()
        needed = torch.cuda.max_memory_allocated(device) - before
        del logits
    except torch.OutOfMemoryError:
        needed = torch.cuda.get_device_properties(device).total_memory
    model = adapted.unload().eval()
    del adapted
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] * _USABLE
    fitting = min(int(free // needed), _MOST_PIECE // length)
    if fitting == 0:
        return max(_CHECKPOINTED_PIECE // length, 1) * length, True, model
    return fitting * length, False, model


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
