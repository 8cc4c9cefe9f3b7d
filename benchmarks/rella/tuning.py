"""LoRA training."""

import copy
from statistics import median

import numpy as np
import torch

from benchmarks.measure import Column, Figures, clock, ratio, silent, timing, train
from benchmarks.plain.rella import BATCH, PlainTuning
from benchmarks.rella.prompts import padding, size_of, split_prompts
from benchmarks.workloads import (
    Effort,
    Films,
    Setup,
)
from rarec.rella.language_model import find_answers
from rarec.rella.small_llama import new_small_llama
from rarec.rella.training_samples import TrainingSamples
from rarec.rella.tuning import TuningObjective, TuningSettings, add_adapter
from rarec.text.tokens import PromptTokens

CPU = torch.device("cpu")
TUNING = TuningSettings.model_validate({})


def tuning(setup: Setup) -> Figures:
    """LoRA tuning.

    RaRec (`TuningObjective` and `fit`, with DeepSpeed and progress as in a worker) cuts steps into pieces of similar
    length, and computes the logits behind the prompt only. The plain loop takes 32 prompts a batch in the order given,
    padded to the longest, with cross-entropy over the vocabulary at every place, of which only the answer has a label.
    Model and prompts are as in `scoring`. Both sides have the default adapter and its dropout, and a step every 256
    prompts. A round is an epoch over all prompts. Tokens are those of the prompts, without padding. Before training,
    with dropout off and visible adapter weights, the mean loss of the answers is equal within 1e-4.
    """
    return {name: _tuning(some, setup.effort) for name, some in setup.films.items()}


def _tuning(films: Films, effort: Effort) -> Column:
    source = films.varied
    training = source.samples.rows("train")
    samples = np.random.default_rng(0).permutation(training.stop)[: effort.tuned]
    tokens = PromptTokens.of(source.parts, films.tokenizer, films.language_model.max_tokens)
    answers = find_answers(films.tokenizer, films.template.yes, films.template.no)
    model = add_adapter(new_small_llama(films.tokenizer, films.language_model), TUNING, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ready = split_prompts(tokens, source.rows(samples, True))
    labels = [answers.tokens[int(label)] for label in source.samples.label[samples]]
    plain = PlainTuning(copy.deepcopy(model), ready, labels, TUNING.learning_rate)
    shots = TrainingSamples(samples, np.ones(len(samples), dtype=bool))
    objective = TuningObjective(model, source, tokens, shots, answers, TUNING, 0, CPU)
    losses = _losses(objective, plain)
    assert abs(losses[0] - losses[1]) < 1e-4, losses
    seconds: list[float] = []
    ours, _ = train(
        objective,
        TUNING.learning_rate,
        effort.rounds + 1,
        turn=lambda: seconds.append(clock(lambda: plain.epoch(TUNING.batch_size))),
        report=silent,
    )
    lengths = np.array([len(row) for row in ready])
    total = int(lengths.sum())
    our_seconds, plain_seconds = [rate * len(samples) for rate in ours[1:]], seconds[1:]
    return {
        **size_of(model),
        "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "prompts": len(samples),
        **padding(lengths, TUNING.piece_tokens),
        "prompts a step": TUNING.batch_size,
        "rounds": effort.rounds,
        **timing("epoch, ours, s", our_seconds),
        **timing("epoch, plain, s", plain_seconds),
        "tokens a second, ours, median": total / median(our_seconds),
        "tokens a second, plain, median": total / median(plain_seconds),
        "ratio": ratio(plain_seconds, our_seconds),
        "loss before training, ours": losses[0],
        "loss before training, plain": losses[1],
    }


@torch.no_grad()
def _losses(objective: TuningObjective, plain: PlainTuning) -> tuple[float, float]:
    """Mean loss of all answers, ours and plain."""
    objective.model.eval()
    plain.model.eval()
    objective.start_epoch(0)
    ours = sum(float(objective.model(piece)[0]) for pieces, _ in objective.batches() for piece in pieces)
    expected = sum(float(plain.loss(first)) for first in range(0, len(plain.texts), BATCH))
    return ours / len(plain.texts), expected / len(plain.texts)
