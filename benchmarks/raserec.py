"""The benchmarks of the RaSeRec track, each a function from `Setup` to figures; its docstring heads its table."""

import io
import itertools
import math
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from statistics import median

import numpy as np
import torch

from benchmarks.measure import Column, Figures, alternate, clock, peak_mib, ratio, silent, timing, train
from benchmarks.plain.raserec import PlainFinetuning, PlainPretraining, Steps, flat_index, flat_neighbours, plain_ranks
from benchmarks.workloads import Effort, Setup, synthetic
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import full_ranking, ranking_table
from rarec.raserec.encoders import SequenceEncoder, build_encoder
from rarec.raserec.finetune import FinetuneObjective
from rarec.raserec.pretrain import PretrainObjective, validation_metrics
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.retrieval.memory import MemoryBank, Queries, normalised
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits
from rarec.training.progress import ProgressReporter
from rarec.types import IntArray

# The defaults are the paper's settings.
PRETRAIN = PretrainSettings.model_validate({})
FINETUNE = FinetuneSettings.model_validate({})
FLAT = MemorySettings.model_validate({})
CPU = torch.device("cpu")
TOP_N = 50
ENCODER = "benchmark"  # stands for the encoder's fingerprint
GROWTH = "growth exponent"


def stage1(setup: Setup) -> Figures:
    """Pre-training: RaRec against the plain way.

    RaRec packs windows, and trains with a worker's step, DeepSpeed engine and progress. The plain way pads every prefix
    to 50, encodes it three times a step, and uses PyTorch's modules, dropout and Adam. Both sides have the paper's
    settings, with dropout on and batches of 256 prefixes. The sides run some steps each in turn, and an epoch is
    extrapolated from the seconds a prefix. Peak memory is what a side needs beyond what was imported before.
    """
    return {name: _stage1(sequences, setup.effort) for name, sequences in setup.workloads.items()}


def _stage1(sequences: UserSequences, effort: Effort) -> Column:
    settings = PRETRAIN
    objective = PretrainObjective(sequences, settings, CPU)
    prefixes = len(objective.prefixes)

    def plain_steps() -> Steps:
        plain = PlainPretraining(sequences, _new_encoder(sequences), settings)
        return Steps(plain.loss, plain.parameters, settings.learning_rate, prefixes, settings.batch_size)

    def run_ours(steps: int) -> None:
        train(PretrainObjective(sequences, settings, CPU), settings.learning_rate, 1, steps)

    def run_plain(steps: int) -> None:
        plain_steps().run(steps)

    peaks = {}
    for side, run in {"ours": run_ours, "plain": run_plain}.items():
        run(1)  # what libraries allocate once belongs to no side
        peaks[side] = peak_mib(partial(run, effort.plain_steps))
    steps = plain_steps()
    plain: list[float] = []
    ours, _ = train(
        objective,
        settings.learning_rate,
        effort.rounds + 1,
        effort.our_steps,
        turn=lambda: plain.append(steps.run(effort.plain_steps)),
    )
    tokens, samples = _tokens(objective, effort.our_steps)
    return {
        **sizes(sequences),
        **_protocol(effort),
        **_epochs(ours[1:], plain[1:], prefixes),
        "tokens a prefix, ours": tokens / samples,
        "tokens a prefix, plain": 3 * settings.max_length,
        "peak memory, ours, MiB": peaks["ours"],
        "peak memory, plain, MiB": peaks["plain"],
    }


def stage2(setup: Setup) -> Figures:
    """Fine-tuning: RaRec against the plain way.

    RaRec computes queries, neighbour lists and memories once, and never projects memories. The plain way encodes its
    padded queries, searches Faiss' exact index and projects all memories in every step. Both sides have the paper's
    settings: K = 20, channel 1 alone, batches of 1,024 prefixes, with a freshly initialised encoder. Rounds and
    extrapolation are as in `stage1`. What RaRec computes once is a row of its own, and the last ratio charges all of it
    to a single epoch.
    """
    return {name: _stage2(sequences, setup.effort) for name, sequences in setup.workloads.items()}


def _stage2(sequences: UserSequences, effort: Effort) -> Column:
    settings = FINETUNE
    encoder = _new_encoder(sequences)
    started = time.perf_counter()
    bank = _bank(sequences, encoder, FLAT)
    objective = FinetuneObjective(sequences, encoder, bank, settings, CPU, silent)
    once = time.perf_counter() - started
    channel = objective.model.module.channel1
    assert channel is not None
    baseline = PlainFinetuning(sequences, encoder, bank, channel, settings)
    steps = Steps(baseline.loss, baseline.parameters, settings.learning_rate, len(bank), settings.batch_size)
    plain: list[float] = []
    ours, _ = train(
        objective,
        settings.learning_rate,
        effort.rounds + 1,
        effort.our_steps,
        turn=lambda: plain.append(steps.run(effort.plain_steps)),
    )
    epochs = _epochs(ours[1:], plain[1:], len(bank))
    return {
        **sizes(sequences),
        **_protocol(effort),
        **epochs,
        "constants of the stage, ours, s": once,
        "ratio if the stage had one epoch": median(plain[1:]) * len(bank) / (median(ours[1:]) * len(bank) + once),
    }


def memory(setup: Setup) -> Figures:
    """The memory bank and the exact neighbour lists (K = 20) of all training prefixes.

    RaRec gives complete lists under the leakage rule. The plain way is a single call of Faiss' IndexFlatIP, which RaRec
    searches too. It answers a sample of the queries, extrapolated to all. It fetches the same K + 16 candidates and
    obeys the rule, but leaves lists short. The encoder is freshly initialised.
    """
    return {name: _memory(sequences, setup.effort) for name, sequences in setup.workloads.items()}


def _memory(sequences: UserSequences, effort: Effort) -> Column:
    k = FINETUNE.memories
    encoder = _new_encoder(sequences)
    prefixes = sequences.prefixes("train")
    encoding = clock(lambda: encoder.encode(sequences, prefixes))
    representations = encoder.encode(sequences, prefixes).numpy()
    building = clock(lambda: MemoryBank.build(sequences, prefixes, representations, ENCODER, FLAT))
    bank = MemoryBank.build(sequences, prefixes, representations, ENCODER, FLAT)
    queries = Queries.of(sequences, prefixes, representations)
    sample = np.sort(np.random.default_rng(0).permutation(len(prefixes))[: effort.queries])
    index = flat_index(representations)
    found: dict[str, IntArray] = {}
    seconds = alternate(
        {
            "ours": lambda: found.update(ours=bank.similar_users(queries, k)),
            "plain": lambda: found.update(plain=flat_neighbours(index, bank, queries[sample], k)),
        },
        effort.rounds,
        warm_up=False,
    )
    plain = [s * len(prefixes) / len(sample) for s in seconds["plain"]]
    directions = normalised(representations)
    # Similarities, as equal prefixes of different users are ties.
    similar, expected = (
        np.where(ids >= 0, np.einsum("qkd,qd->qk", directions[ids], directions[sample]), -np.inf)
        for ids in (found["ours"][sample], found["plain"])
    )
    return {
        **sizes(sequences),
        "rounds": effort.rounds,
        "queries of the plain side": len(sample),
        "encode all prefixes, ours, s": encoding,
        "build the bank, ours, s": building,
        **timing("all lists, ours, s", seconds["ours"]),
        **timing("all lists, plain, s (extrapolated)", plain),
        "ratio of the lists": ratio(plain, seconds["ours"]),
        "encode, build and lists, ours, s": encoding + building + median(seconds["ours"]),
        "share of equal similarities in the sample": float(np.isclose(similar, expected).mean()),
    }


def ranking(setup: Setup) -> Figures:
    """Full ranking of all users on all items, masked and unmasked, without and with lists of 50 items.

    The plain way is a loop over users in NumPy. It ranks a sample of the users, extrapolated to all. Both sides begin
    with the users' vectors. RaRec's encoding and metrics are rows of their own.
    """
    return {name: _ranking(sequences, setup.effort) for name, sequences in setup.workloads.items()}


def _ranking(sequences: UserSequences, effort: Effort) -> Column:
    encoder = _new_encoder(sequences)
    prefixes = sequences.prefixes("valid")
    vectors, items = encoder.encode(sequences, prefixes), encoder.item_embedding.detach()
    targets = sequences.next_items(prefixes)
    offsets, seen = sequences.seen_before(prefixes)
    users = np.sort(np.random.default_rng(0).permutation(len(prefixes))[: effort.users])
    seen_of = [seen[offsets[user] : offsets[user + 1]] for user in users]
    columns = [torch.from_numpy(column) for column in (targets, offsets, seen)]
    sample = (vectors[torch.from_numpy(users)].numpy(), items.numpy(), targets[users], seen_of)
    seconds = alternate(
        {
            "ours": lambda: full_ranking(vectors, items, *columns),
            "plain": lambda: plain_ranks(*sample),
            "ours with lists": lambda: full_ranking(vectors, items, *columns, top_n=TOP_N),
            "plain with lists": lambda: plain_ranks(*sample, top_n=TOP_N),
        },
        effort.rounds,
    )
    for side in ("plain", "plain with lists"):
        seconds[side] = [s * len(prefixes) / len(users) for s in seconds[side]]
    rank = full_ranking(vectors, items, *columns).rank
    encoding = clock(lambda: encoder.encode(sequences, prefixes))
    metrics = clock(lambda: (ranking_table(rank), ranking_table(rank)))
    return {
        **sizes(sequences),
        "users ranked": len(prefixes),
        "rounds": effort.rounds,
        "users of the plain side": len(users),
        "encode, ours, s": encoding,
        **timing("rank, ours, s", seconds["ours"]),
        **timing("rank, plain, s (extrapolated)", seconds["plain"]),
        "ratio": ratio(seconds["plain"], seconds["ours"]),
        **timing("rank and lists, ours, s", seconds["ours with lists"]),
        **timing("rank and lists, plain, s (extrapolated)", seconds["plain with lists"]),
        "ratio with lists": ratio(seconds["plain with lists"], seconds["ours with lists"]),
        "metrics of both protocols, ours, s": metrics,
        "encode, rank and metrics, ours, s": encoding + median(seconds["ours"]) + metrics,
    }


def scaling(setup: Setup) -> Figures:
    """Growth with the number of users: whole epochs, the whole bank, all lists, all evaluated users.

    Nothing is extrapolated, and each size is measured once. The sequences are synthetic and of equal lengths. The
    catalogue stays the same, because a full softmax costs prefixes times items. The exponent e fits seconds =
    c · interactions^e; 1 is linear. Exact lists compare every prefix with every memory, which is quadratic. Beside them
    are inverted lists (as many as the square root of the memories, 8 of them probed), with their recall@20.
    """
    effort = setup.effort
    _scale(synthetic(effort.scale_users // 2, effort.scale_items, seed=1), {})  # warms up
    figures: Figures = {}
    for multiple in effort.multiples:
        sequences = synthetic(effort.scale_users * multiple, effort.scale_items)
        column: Column = {}
        peak = peak_mib(partial(_scale, sequences, column))
        figures[f"{multiple}x"] = {**column, "peak memory, MiB": peak}
    columns = list(figures.values())
    size = np.log([float(column["interactions"]) for column in columns])
    rows = [row for row in columns[0] if row.endswith(", s")]
    figures[GROWTH] = {
        row: float(np.polyfit(size, np.log([float(column[row]) for column in columns]), 1)[0]) for row in rows
    }
    return figures


def _scale(sequences: UserSequences, column: Column) -> None:
    """Fill ``column`` with the figures of one size."""
    pretraining, finetuning = PRETRAIN, FINETUNE
    objective = PretrainObjective(sequences, pretraining, CPU)
    prefixes = objective.prefixes
    (stage1_rate,), _ = train(objective, pretraining.learning_rate, 1)
    encoder = objective.encoder.eval()
    found: dict[str, MemoryBank] = {}
    lists = min(len(prefixes), round(math.sqrt(len(prefixes))))
    ivf = FLAT.model_copy(update={"index": "ivf", "ivf_lists": lists, "ivf_probes": min(8, lists)})
    building = clock(lambda: found.update(flat=_bank(sequences, encoder, FLAT)))
    building_ivf = clock(lambda: found.update(ivf=_bank(sequences, encoder, ivf)))
    queries = Queries.of(sequences, prefixes, found["flat"].representations)
    exact = clock(lambda: found["flat"].similar_users(queries, finetuning.memories))
    approximate = clock(lambda: found["ivf"].similar_users(queries, finetuning.memories))
    sample = np.random.default_rng(0).permutation(len(prefixes))[:1000]
    # Where an epoch's neighbours come from does not change its cost.
    second = FinetuneObjective(sequences, encoder, found["ivf"], finetuning, CPU, silent)
    (stage2_rate,), _ = train(second, finetuning.learning_rate, 1)
    valid = sequences.prefixes("valid")
    evaluation = clock(
        lambda: validation_metrics(sequences, lambda p: encoder.encode(sequences, valid[p]), encoder, encoder)
    )
    column |= {
        **sizes(sequences),
        "stage 1, an epoch, s": stage1_rate * len(prefixes),
        "encode and build the bank, s": building,
        "exact lists, s": exact,
        "encode and build with inverted lists, s": building_ivf,
        "inverted lists, s": approximate,
        "inverted lists, recall@20": found["ivf"].recall(queries[sample], finetuning.memories),
        "stage 2, an epoch, s": stage2_rate * len(prefixes),
        "evaluation, s": evaluation,
    }


def overhead(setup: Setup) -> Figures:
    """What a worker's loop adds to stage 1.

    `fit`, with DeepSpeed engine, progress reports and checkpoints, against a bare loop over the same batches of the
    same model with the same fused Adam. The sides run in turn, and an epoch is extrapolated from the seconds a prefix.
    Checkpoints are written once an epoch and have a row of their own.
    """
    return {name: _overhead(sequences, setup.effort) for name, sequences in setup.workloads.items()}


def _overhead(sequences: UserSequences, effort: Effort) -> Column:
    settings = PRETRAIN
    worker, bare = (PretrainObjective(sequences, settings, CPU) for _ in range(2))
    optimizer = torch.optim.Adam(bare.model.parameters(), lr=settings.learning_rate, fused=True)
    plain: list[float] = []

    def bare_turn() -> None:
        started = time.perf_counter()
        bare.model.train()
        bare.start_epoch(len(plain))
        seen = 0
        for (batch,), samples in itertools.islice(bare.batches(), effort.our_steps):
            optimizer.zero_grad()
            loss, _ = bare.model(batch)
            (loss / samples).backward()
            optimizer.step()
            seen += samples
        plain.append((time.perf_counter() - started) / seen)

    epochs = effort.rounds + 1
    with redirect_stdout(io.StringIO()), ProgressReporter() as reporter:
        ours, summary = train(
            worker, settings.learning_rate, epochs, effort.our_steps, turn=bare_turn, report=reporter.report
        )
    inside = sum(record["train_seconds"] + record["validation_seconds"] for record in summary["history"])
    epoch = [rate * len(worker.prefixes) for rate in ours[1:]]
    loop = [rate * len(worker.prefixes) for rate in plain[1:]]
    checkpoint = (summary["seconds"] - inside) / epochs
    return {
        **sizes(sequences),
        "steps a round": effort.our_steps,
        "rounds": effort.rounds,
        **timing("epoch in a worker, s (extrapolated)", epoch),
        **timing("epoch in a bare loop, s (extrapolated)", loop),
        "engine and progress, share of an epoch": median(epoch) / median(loop) - 1,
        "checkpoint and best weights, s an epoch": checkpoint,
        "all of it, share of an epoch": (median(epoch) + checkpoint) / median(loop) - 1,
    }


def _new_encoder(sequences: UserSequences) -> SequenceEncoder:
    """The paper's encoder, freshly initialised."""
    torch.manual_seed(0)
    return build_encoder(sequences.n_items, PRETRAIN, DropoutBits())


def _bank(sequences: UserSequences, encoder: SequenceEncoder, settings: MemorySettings) -> MemoryBank:
    prefixes = sequences.prefixes("train")
    return MemoryBank.build(sequences, prefixes, encoder.encode(sequences, prefixes).numpy(), ENCODER, settings)


def _tokens(objective: PretrainObjective, steps: int) -> tuple[int, int]:
    """Tokens that the first steps of an epoch encode (padding and partners included), and their prefixes."""
    objective.start_epoch(0)
    counts = [(b[0].items.numel(), samples) for (b,), samples in itertools.islice(objective.batches(), steps)]
    tokens, samples = zip(*counts, strict=True)
    return sum(tokens), sum(samples)


def sizes(sequences: UserSequences) -> Column:
    """How large a workload is."""
    return {
        "users": sequences.n_users,
        "items": sequences.n_items,
        "interactions": len(sequences.items),
        "training prefixes": len(sequences.prefixes("train")),
    }


def _protocol(effort: Effort) -> Column:
    return {
        "rounds": effort.rounds,
        "steps a round, ours": effort.our_steps,
        "steps a round, plain": effort.plain_steps,
    }


def _epochs(ours: list[float], plain: list[float], samples: int) -> Column:
    """Rows of an epoch of ``samples`` prefixes, from the seconds a prefix of every round."""
    return {
        **timing("epoch, ours, s (extrapolated)", [rate * samples for rate in ours]),
        **timing("epoch, plain, s (extrapolated)", [rate * samples for rate in plain]),
        "ratio of the epochs": ratio(plain, ours),
    }


BENCHMARKS: dict[str, Callable[[Setup], Figures]] = {
    function.__name__: function for function in (stage1, stage2, memory, ranking, scaling, overhead)
}
