"""Prompts as tokens, and the probabilities that a language model answers them with."""

import itertools
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import Column, Figures, alternate, peak_mib, ratio, timing
from benchmarks.plain.rella import BATCH, plain_prompts, plain_scores
from benchmarks.workloads import (
    BEHAVIOURS,
    Effort,
    Films,
    Setup,
)
from rarec.rella import scoring as rella_scoring
from rarec.rella.language_model import find_answers, pad
from rarec.rella.scoring import score
from rarec.rella.small_llama import new_small_llama
from rarec.text.tokens import PromptTokens, by_length
from rarec.types import IntArray

CPU = torch.device("cpu")
CHUNK = 8192  # prompts put together at once, as scoring does


def prompts(setup: Setup) -> Figures:
    """Prompts with K = 30 retrieved behaviours as tokens.

    RaRec tokenises the parts once and puts them together. The plain way writes every prompt with string formatting, and
    tokenises it in one batch with the same tokenizer. The parts are tokenised again in every round, and the amortised
    figure charges that to the prompts of the round: the more there are, the less it matters. The first batch is ready
    when `CHUNK` = 8,192 prompts, or all, are put together and the longest are padded to 16,384 tokens. The tokens of
    both sides are equal.
    """
    return {name: _prompts(some, setup.effort) for name, some in setup.films.items()}


def _prompts(films: Films, effort: Effort) -> Column:
    source = films.source
    samples = np.random.default_rng(0).permutation(len(source.samples))[: effort.prompts]
    few = samples[: effort.plain_prompts]
    limit = films.language_model.max_tokens
    tokens = PromptTokens.of(source.parts, films.tokenizer, limit)
    written: list[list[int]] = []
    lengths: list[IntArray] = []

    def first_batch() -> None:
        made = tokens.prompts(source.rows(samples[:CHUNK], True))
        pad(made.tokens, made.lengths, next(by_length(made.lengths, 16384)), CPU)

    def ours() -> None:
        chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
        lengths[:] = [tokens.prompts(source.rows(chunk, True)).lengths for chunk in chunks]

    def plain() -> None:
        written[:] = plain_prompts(films, few, source.retrieved[few].astype(np.int64))

    def tokenise() -> None:
        PromptTokens.of(source.parts, films.tokenizer, limit)

    sides = {"tokenise": tokenise, "first": first_batch, "ours": ours, "plain": plain}
    seconds = alternate(sides, effort.rounds)
    assert split_prompts(tokens, source.rows(few, True)) == written
    plain_seconds = [s * len(samples) / len(few) for s in seconds["plain"]]
    amortised = [once + s for once, s in zip(seconds["tokenise"], seconds["ours"], strict=True)]
    return {
        "parts": len(tokens.table),
        "prompts": len(samples),
        "tokens a prompt, mean": float(np.concatenate(lengths).mean()),
        "behaviours a prompt, mean": float((source.retrieved[samples] > 0).sum(1).mean()),
        "rounds": effort.rounds,
        "prompts of the plain side": len(few),
        **timing("tokenise all parts once, ours, s", seconds["tokenise"]),
        **timing("until the first batch, ours, s", seconds["first"]),
        **timing("put together, ours, s", seconds["ours"]),
        **timing("write and tokenise, plain, s (extrapolated)", plain_seconds),
        "prompts a second, ours, median": len(samples) / median(seconds["ours"]),
        "prompts a second, ours with tokenising, median": len(samples) / median(amortised),
        "prompts a second, plain, median": len(samples) / median(plain_seconds),
        "ratio": ratio(plain_seconds, seconds["ours"]),
        "ratio with tokenising": ratio(plain_seconds, amortised),
    }


def scoring(setup: Setup) -> Figures:
    """The probability of yes.

    RaRec (`score`) puts prompts together, sorts them by length, and computes the logits behind the prompt only, through
    `CpuDecoder`. The plain way takes ready tokens in the order given, 32 prompts a batch, padded to the longest, and
    computes the logits of the whole vocabulary at every place and their softmax. A third side is RaRec without
    `CpuDecoder`, as for models of another form.

    The model is a Llama with random weights of the shape that the data set's own settings give, or of the default one
    (width 128, four layers). Prompts have 5 to 30 retrieved behaviours, drawn evenly. Probabilities are equal within
    1e-4.

    The last rows show how much the reuse of prefixes could save at most, for test prompts of up to K = 30 behaviours:
    the tokens that all prompts begin with, and the tokens that a user's prompt shares with the one before. The latter
    is also shown for targets with more than K past behaviours, whose history is chosen. What all prompts share does not
    pay, because the profile comes first. Of a user's prompt before, profile and heading stay, and little else: the
    recent history loses its oldest film, and the retrieved one changes anywhere. Only samples with at most K past
    behaviours share more, and these are few where histories are long, as in MovieLens-1M and -25M. RaRec reuses
    nothing: the saving would have to pay for keeping and joining keys and values.
    """
    return {name: _scoring(some, setup.effort) for name, some in setup.films.items()}


def _scoring(films: Films, effort: Effort) -> Column:
    source = films.varied
    samples = np.random.default_rng(0).permutation(len(source.samples))[: effort.scored]
    assert len(samples) >= rella_scoring.MANY, "so few prompts do not go through CpuDecoder"
    tokens = PromptTokens.of(source.parts, films.tokenizer, films.language_model.max_tokens)
    answers = find_answers(films.tokenizer, films.template.yes, films.template.no)
    model = new_small_llama(films.tokenizer, films.language_model).eval()
    parts = source.rows(samples, True)
    ready = split_prompts(tokens, parts)
    found: dict[str, Any] = {}

    def without_decoder() -> None:
        with patch.object(rella_scoring, "MANY", len(parts) + 1):
            found.update(transformers=score(model, tokens, parts, answers, CPU)[0])

    sides = {
        "ours": lambda: found.update(ours=score(model, tokens, parts, answers, CPU)[0]),
        "transformers": without_decoder,
        "plain": lambda: found.update(plain=plain_scores(model, ready, answers)),
    }
    peaks = {side: peak_mib(run) for side, run in sides.items()}
    seconds = alternate(sides, effort.rounds)
    difference = max(float(np.abs(found[side] - found["plain"]).max()) for side in ("ours", "transformers"))
    assert difference < 1e-4, difference
    spread = float(found["ours"].std())
    assert spread > 1e-3, "every prompt has the same probability: nothing was compared"
    lengths = np.array([len(row) for row in ready])
    return {
        **size_of(model),
        "prompts": len(samples),
        **padding(lengths, rella_scoring.BATCH_TOKENS),
        "rounds": effort.rounds,
        **timing("score, ours, s", seconds["ours"]),
        **timing("score, ours without CpuDecoder, s", seconds["transformers"]),
        **timing("score, plain, s", seconds["plain"]),
        "prompts a second, ours, median": len(samples) / median(seconds["ours"]),
        "prompts a second, plain, median": len(samples) / median(seconds["plain"]),
        "ratio": ratio(seconds["plain"], seconds["ours"]),
        "ratio without CpuDecoder": ratio(seconds["plain"], seconds["transformers"]),
        "largest difference of probabilities": difference,
        "deviation of probabilities": spread,
        "peak memory, ours, MiB": peaks["ours"],
        "peak memory, plain, MiB": peaks["plain"],
        **_prefixes(films, tokens),
    }


def _prefixes(films: Films, tokens: PromptTokens) -> Column:
    """Shares of tokens that the test prompts of some users have in common with others as a prefix."""
    source = films.source
    samples = source.samples
    rows = samples.rows("test")
    test = np.arange(rows.start, rows.stop)
    user = source.user(test)
    chosen = test[np.isin(user, np.random.default_rng(0).permutation(np.unique(user))[:50])]
    chosen = chosen[np.argsort(samples.position[chosen])]
    user = source.user(chosen)
    long = samples.position[chosen] - samples.offsets[user] > BEHAVIOURS
    column: Column = {"test prompts with more than K past behaviours, share": float(long.mean())}
    for history, retrieved in (("recent", False), ("retrieved", True)):
        prompts = split_prompts(tokens, source.rows(chosen, retrieved))
        lengths = np.array([len(prompt) for prompt in prompts])
        same = np.array([_common(a, b) for a, b in itertools.pairwise(prompts)], dtype=np.int64)
        before = np.concatenate([[0], np.where(np.diff(user) == 0, same, 0)])
        column[f"tokens that all prompts begin with, {history}, share"] = (
            _common(min(prompts), max(prompts)) * len(prompts) / int(lengths.sum())
        )
        column[f"tokens like the user's prompt before, {history}, share"] = int(before.sum()) / int(lengths.sum())
        column[f"tokens like the user's prompt before, {history}, more than K, share"] = (
            int(before[long].sum()) / int(lengths[long].sum()) if long.any() else float("nan")
        )
    return column


def _common(one: list[int], other: list[int]) -> int:
    """Length of the longest prefix of both."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


def split_prompts(tokens: PromptTokens, parts: IntArray) -> list[list[int]]:
    """Our prompts, each a list."""
    made = tokens.prompts(parts)
    return [row.tolist() for row in np.split(made.tokens, made.lengths.cumsum()[:-1])]


def size_of(model: Any) -> Column:
    return {
        "vocabulary": model.config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def padding(lengths: IntArray, most_tokens: int) -> Column:
    """Tokens a prompt, and what share of each side's batches is padding."""
    ours = sum(len(rows) * int(lengths[rows].max()) for rows in by_length(lengths, most_tokens))
    batches = np.split(lengths, range(BATCH, len(lengths), BATCH))
    plain = sum(len(batch) * int(batch.max()) for batch in batches)
    return {
        "tokens a prompt, mean": float(lengths.mean()),
        "padding, ours, share": 1 - int(lengths.sum()) / ours,
        "padding, plain, share": 1 - int(lengths.sum()) / plain,
    }
