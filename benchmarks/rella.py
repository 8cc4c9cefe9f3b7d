"""The benchmarks of the ReLLa track, each a function from `Setup` to figures; its docstring heads its table."""

import copy
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import Column, Figures, alternate, clock, peak_mib, ratio, silent, timing, train
from benchmarks.plain_rella import BATCH, PlainTuning, plain_behaviours, plain_prompts, plain_scores
from benchmarks.workloads import (
    BEHAVIOURS,
    ML_1M_SPREAD,
    ML_25M_SPREAD,
    Effort,
    Films,
    Histories,
    Setup,
    directions,
    histories,
)
from rarec.data.ctr import CtrSamples, CtrSettings, build_ctr_samples
from rarec.rella import scoring as rella_scoring
from rarec.rella.language_model import find_answers, pad
from rarec.rella.scoring import score
from rarec.rella.small_llama import scratch_model
from rarec.rella.training_samples import Shots
from rarec.rella.tuning import TuningObjective, TuningSettings, add_adapter
from rarec.retrieval.subr import distance_type, recent_behaviours, retrieve_behaviours
from rarec.text.tokens import PromptTokens, by_length
from rarec.training.engine import peak_memory_mib
from rarec.types import Distances, Float32Array, IntArray

CPU = torch.device("cpu")
DIMENSIONS = (512, 128)  # of item vectors: the paper's, and what a scratch model gives
ML_25M_USERS, ML_25M_INTERACTIONS = 162_541, 25_000_095
CHUNK = 8192  # prompts put together at once, as scoring does
TUNING = TuningSettings.model_validate({})


def subr(setup: Setup) -> Figures:
    """Behaviour retrieval (K = 30) for every sample of histories like MovieLens-1M's.

    `retrieve_behaviours` against a loop over samples (inner products with the history, `argsort`, the last K sorted by
    time). The vectors are random unit vectors; D is in the header. The loop answers a sample of the samples. Samples a
    second a core are those of one thread. Both ratios are to the loop at the same time. Peak memory is what is needed
    beyond vectors, interactions, samples and result, for N samples and for those of four times as many users.
    """
    effort = setup.effort
    sizes = (effort.retrieval_users, effort.retrieval_items, effort.retrieval_interactions)
    small = histories(*sizes, ML_1M_SPREAD)
    large = histories(4 * sizes[0], sizes[1], 4 * sizes[2], ML_1M_SPREAD, seed=1)
    return {f"D = {dim}": _subr(small, large, dim, effort) for dim in DIMENSIONS}


def _subr(small: Histories, large: Histories, dim: int, effort: Effort) -> Column:
    vectors = directions(effort.retrieval_items, dim)
    position = small.targets()
    kept = _empty(small, position)
    sample = np.sort(np.random.default_rng(0).permutation(len(position))[: effort.plain_retrievals])
    arguments = (vectors, small.items, small.offsets)
    threads = torch.get_num_threads()
    expected: list[IntArray] = []

    def ours(use: int) -> None:
        torch.set_num_threads(use)
        retrieve_behaviours(*arguments, position, BEHAVIOURS, out=kept)
        torch.set_num_threads(threads)

    def plain() -> None:
        expected[:] = plain_behaviours(*arguments, position[sample], BEHAVIOURS)

    retrieve_behaviours(*arguments, position[:100], BEHAVIOURS)  # warms up
    sides: dict[str, Callable[[], Any]] = {"core": partial(ours, 1), "ours": partial(ours, threads), "plain": plain}
    seconds = alternate(sides, effort.rounds, warm_up=False)
    equal = _share_of_equal(vectors, small.items, position[sample], kept[sample], expected)
    rates = {side: [len(position) / s for s in seconds[side]] for side in ("core", "ours")}
    plain_seconds = [s * len(position) / len(sample) for s in seconds["plain"]]
    targets = large.targets()
    result = _empty(large, targets)
    peaks = [
        peak_mib(partial(retrieve_behaviours, vectors, data.items, data.offsets, of, BEHAVIOURS, out=out))
        for data, of, out in ((small, position, kept), (large, targets, result))
    ]
    return {
        "users": len(small.lengths),
        "items": len(vectors),
        "samples, N": len(position),
        "past behaviours a sample, mean": small.mean_history(position),
        "rounds": effort.rounds,
        "samples of the plain side": len(sample),
        **timing("N samples, ours on one thread, s", seconds["core"]),
        f"N samples, ours on {threads} threads, s": median(seconds["ours"]),
        **timing("N samples, plain, s (extrapolated)", plain_seconds),
        "samples a second a core, ours, median": median(rates["core"]),
        f"samples a second on {threads} threads, ours, median": median(rates["ours"]),
        "ratio, ours on one thread": ratio(plain_seconds, seconds["core"]),
        f"ratio, ours on {threads} threads": ratio(plain_seconds, seconds["ours"]),
        "share of equal lists": equal,
        "peak memory, N samples, MiB": peaks[0],
        "peak memory, 4 N samples, MiB": peaks[1],
        "peak memory, bytes a further sample": (peaks[1] - peaks[0]) * 2**20 / (len(targets) - len(position)),
    }


def _empty(data: Histories, position: IntArray) -> Distances:
    """Room for the result, already part of this process."""
    return np.full((len(position), BEHAVIOURS), 0, dtype=distance_type(data.offsets))


def _share_of_equal(
    vectors: Float32Array, items: IntArray, position: IntArray, kept: Distances, expected: list[IntArray]
) -> float:
    """Share of equal lists; others must be as similar to the target, as rounding decides near ties.

    Raises:
        AssertionError: they are not.
    """
    equal = 0
    for target, distances, wanted in zip(position.tolist(), kept.astype(np.int64), expected, strict=True):
        found = target - distances[distances > 0]
        if np.array_equal(found, wanted):
            equal += 1
            continue
        sums = [(vectors[items[rows]] @ vectors[items[target]]).sum() for rows in (found, wanted)]
        assert len(found) == len(wanted), (target, len(found), len(wanted))
        assert abs(sums[0] - sums[1]) < 1e-4, (target, sums)
    return equal / len(expected)


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
    assert _split(tokens, source.rows(few, True)) == written
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
    model = scratch_model(films.tokenizer, films.language_model).eval()
    parts = source.rows(samples, True)
    ready = _split(tokens, parts)
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
        **_model(model),
        "prompts": len(samples),
        **_padding(lengths, rella_scoring.BATCH_TOKENS),
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
        prompts = _split(tokens, source.rows(chosen, retrieved))
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
    model = add_adapter(scratch_model(films.tokenizer, films.language_model), TUNING, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ready = _split(tokens, source.rows(samples, True))
    labels = [answers.tokens[int(label)] for label in source.samples.label[samples]]
    plain = PlainTuning(copy.deepcopy(model), ready, labels, TUNING.learning_rate)
    shots = Shots(samples, np.ones(len(samples), dtype=bool))
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
        **_model(model),
        "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "prompts": len(samples),
        **_padding(lengths, TUNING.piece_tokens),
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


def ctr_scale(setup: Setup) -> Figures:
    """Samples and both histories (K = 30) of data of MovieLens-25M's shape.

    They are written to memory-mapped files in a temporary folder: whole, nothing extrapolated, measured once. The
    vectors are random unit vectors of D = 512. The process's peak includes the libraries, the inputs (four columns of
    interactions, and the vectors) and the pages of both files that are in memory. What was held before is the libraries
    and the items. A part of the retrieved histories is checked with the plain loop.
    """
    effort = setup.effort
    users = max(2, round(effort.ctr_interactions * ML_25M_USERS / ML_25M_INTERACTIONS))
    data = histories(users, effort.ctr_items, effort.ctr_interactions, ML_25M_SPREAD)
    with tempfile.TemporaryDirectory() as folder:
        column: Column = {}
        beyond = peak_mib(partial(_ctr_scale, data, effort, Path(folder), column))
        column |= {
            "peak memory beyond what was held before, MiB": beyond,
            "peak memory of the process, MiB": peak_memory_mib(),
        }
    return {f"{len(data.items) / 1e6:.3g} million": column}


def _ctr_scale(data: Histories, effort: Effort, folder: Path, column: Column) -> None:
    """Fill ``column`` with the figures."""
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(len(data.lengths), dtype=np.int32), data.lengths)
    # A user begins at any time of 20 years and rates a film a minute.
    timestamp = (rng.integers(0, 20 * 365 * 86_400, len(data.lengths)) - 60 * data.offsets[:-1])[user]
    timestamp += 60 * np.arange(len(user))
    liked = rng.random(len(user), dtype=np.float32) < 0.6
    vectors = directions(effort.ctr_items, DIMENSIONS[0])
    made: list[CtrSamples] = []
    settings = CtrSettings.model_validate({})
    building = clock(
        lambda: made.append(build_ctr_samples(user, timestamp, liked, len(data.lengths), "clock", settings))
    )
    (samples,) = made
    files = [
        np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", distance_type(samples.offsets), (len(samples), BEHAVIOURS)
        )
        for name in ("recent", "retrieved")
    ]
    recent, retrieved = files
    started = time.perf_counter()
    recent_behaviours(samples.offsets, samples.position, BEHAVIOURS, out=recent)
    recent.flush()
    latest = time.perf_counter() - started
    started = time.perf_counter()
    retrieve_behaviours(vectors, data.items, samples.offsets, samples.position, BEHAVIOURS, out=retrieved)
    retrieved.flush()
    retrieval = time.perf_counter() - started
    chosen = rng.permutation(len(samples))[:200]
    position = samples.position[chosen]
    expected = plain_behaviours(vectors, data.items, samples.offsets, position, BEHAVIOURS)
    equal = _share_of_equal(vectors, data.items, position, retrieved[chosen], expected)
    column |= {
        "users": len(data.lengths),
        "items": len(vectors),
        "interactions": len(data.items),
        "samples": len(samples),
        "past behaviours a sample, mean": data.mean_history(samples.position),
        "longest history": int(data.lengths.max()),
        "build samples, s": building,
        "recent histories, s": latest,
        "retrieved histories, s": retrieval,
        "all of it, s": building + latest + retrieval,
        "samples a second, retrieved": len(samples) / retrieval,
        "both files, MiB": sum(file.nbytes for file in files) / 2**20,
        "share of equal lists in the part": equal,
    }


def _split(tokens: PromptTokens, parts: IntArray) -> list[list[int]]:
    """Our prompts, each a list."""
    made = tokens.prompts(parts)
    return [row.tolist() for row in np.split(made.tokens, made.lengths.cumsum()[:-1])]


def _model(model: Any) -> Column:
    return {
        "vocabulary": model.config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _padding(lengths: IntArray, most_tokens: int) -> Column:
    """Tokens a prompt, and what share of each side's batches is padding."""
    ours = sum(len(rows) * int(lengths[rows].max()) for rows in by_length(lengths, most_tokens))
    batches = np.split(lengths, range(BATCH, len(lengths), BATCH))
    plain = sum(len(batch) * int(batch.max()) for batch in batches)
    return {
        "tokens a prompt, mean": float(lengths.mean()),
        "padding, ours, share": 1 - int(lengths.sum()) / ours,
        "padding, plain, share": 1 - int(lengths.sum()) / plain,
    }


BENCHMARKS: dict[str, Callable[[Setup], Figures]] = {
    function.__name__: function for function in (subr, prompts, scoring, tuning, ctr_scale)
}
ON_FILMS = frozenset({"prompts", "scoring", "tuning"})
