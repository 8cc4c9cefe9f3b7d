"""A small language model made from the data themselves, for where no pre-trained weights can be had.

It reads the catalogue and the training split's histories, so it knows titles and what people who rated them thought; it
is no general language model, and its card says so. Nothing of validation or test is read: a behaviour is training text
only if it happened before the first validation sample.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rarec.data.ctr import CtrSamples
from rarec.data.sequences import IntArray, ranges, user_at
from rarec.errors import InputError
from rarec.rella.language_model import SCRATCH, LanguageModelSettings, ModelReference, PaddedBatch, pad
from rarec.rella.samples import load_items
from rarec.text.prompts import NO_PART, Catalogue, PromptParts
from rarec.text.tokens import PromptTokens, by_length
from rarec.training.engine import keep_freed_memory
from rarec.training.progress import ProgressReporter, launched_rank, worker_main
from rarec.training.softmax import full_softmax_loss

BOS, EOS = "<s>", "</s>"
CARD = "card.json"
INITIAL_SCALE = 0.5
LEARNED = 512  # tokens at least that are learned from texts, the 256 bytes among them


def load_card(folder: Path) -> dict[str, Any]:
    """What a scratch model's folder says of itself."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    return card


def train_tokenizer(texts: list[str], vocabulary: int, names: Sequence[str] = (), answers: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer (any text can be written in it) of at most ``vocabulary`` tokens.

    ``answers`` behind a space and ``names`` become tokens of their own, as long as `LEARNED` tokens are left to learn
    from ``texts``. A text is cut at colons and line ends only, so that words that always go together are
    one token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    whole = [*(f" {answer}" for answer in answers), *names][: max(vocabulary - LEARNED, len(answers))]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(":", "isolated"),
            pre_tokenizers.Split(Regex("\n"), "merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary - len(whole), 258),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS, EOS],
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    raw.add_tokens([AddedToken(name, normalized=False) for name in whole])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=BOS, eos_token=EOS, pad_token=EOS, padding_side="left"
    )


def scratch_model(tokenizer: Any, settings: LanguageModelSettings) -> Any:
    """A small Llama for the tokens of ``tokenizer``, with random weights drawn with the settings' seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.dim,
            intermediate_size=3 * settings.dim,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.max_tokens,
            attention_dropout=settings.dropout,
            # Llama's 0.02 is meant for a width of thousands; a narrow model would hardly leave its uniform attention.
            initializer_range=INITIAL_SCALE * settings.dim**-0.5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def training_positions(samples: CtrSamples, timestamp: IntArray, has_clock: bool) -> IntArray:
    """Interactions that the model may read: those before the first validation sample.

    Without a clock: everything of the users whose only sample is a training sample.
    """
    if has_clock:
        first = timestamp[samples.position[samples.rows("valid")]].min()
        return np.flatnonzero(timestamp < first)
    users = samples.user[samples.rows("train")]
    lengths = np.diff(samples.offsets)[users]
    return np.sort(ranges(samples.offsets[users], lengths))


@dataclass(frozen=True)
class HistoryPieces:
    """Cuts of training histories into pieces of at most ``behaviours``, at another place in every epoch."""

    parts: PromptParts
    offsets: IntArray
    allowed: IntArray
    behaviours: int

    def of_epoch(self, generator: np.random.Generator) -> IntArray:
        """(D, behaviours + 3) part numbers of the epoch's documents: profile, heading, lines, no question."""
        user = user_at(self.offsets, self.allowed)
        first = np.searchsorted(user, user)  # place in `allowed` of the user's first
        place = np.arange(len(user)) - first + generator.integers(0, self.behaviours, len(self.offsets))[user]
        piece = place // self.behaviours
        opens = np.flatnonzero((np.diff(user, prepend=-1) != 0) | (np.diff(piece, prepend=-1) != 0))
        size = np.diff(np.append(opens, len(user)))
        rows = np.full((len(opens), self.behaviours + 3), NO_PART)
        rows[:, 0] = self.parts.profiles + user[opens]
        rows[:, 1] = self.parts.lines - 1
        at = ranges(np.full_like(size, 2) + self.behaviours - size, size)
        rows[np.repeat(np.arange(len(opens)), size), at] = self.parts.lines + self.parts.line_of[self.allowed]
        return rows


def train_scratch(
    parts: PromptParts,
    catalogue: Catalogue,
    items: IntArray,
    offsets: IntArray,
    allowed: IntArray,
    answers: tuple[str, str],
    settings: LanguageModelSettings,
    folder: Path,
    report: Callable[..., None],
) -> dict[str, Any]:
    """Make tokenizer and model, and write them into ``folder`` with a card.

    Args:
        parts: the prompts' parts; of lines only those in ``allowed`` are read.
        items: (M,) item of each interaction.
        offsets, allowed: users' interactions, and those that may be read, ascending.
        answers: the words for yes and no.

    Returns:
        What the card says, and the seconds it took.
    """
    readable = np.unique(parts.line_of[allowed]) + parts.lines
    # Every prompt has the heading and the question's words, so these shall be few tokens.
    always = [parts.texts[parts.lines - 1]] * len(catalogue.names) + parts.texts[parts.questions :]
    texts = [
        *parts.texts[: parts.lines - 1],
        *always,
        *(parts.texts[line] for line in readable),
        *catalogue.descriptions,
    ]
    count = np.bincount(items[allowed], minlength=len(catalogue.names))
    names = [catalogue.names[item] for item in np.argsort(-count, kind="stable").tolist() if count[item]]
    tokenizer = train_tokenizer(texts, settings.vocabulary, list(dict.fromkeys(names)), answers)
    # Descriptions are documents too: one part each, where a prompt has its question.
    known = replace(parts, texts=[*parts.texts, *(f"{text}\n" for text in catalogue.descriptions)])
    tokens = PromptTokens.of(known, tokenizer, settings.max_tokens)
    described = np.full((len(catalogue.descriptions), settings.behaviours + 3), NO_PART)
    described[:, -1] = len(parts.texts) + np.arange(len(described))
    model = scratch_model(tokenizer, settings)
    pieces = HistoryPieces(parts, offsets, allowed, settings.behaviours)
    started = time.perf_counter()
    losses, read, shares = _train(model, tokens, pieces, described, settings, report)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {
        "what": "a small Llama trained by RaRec on one data set; not a general language model",
        "read": f"in a mean epoch {shares[1]:.2%} of the tokens of {len(catalogue.descriptions)} item descriptions, "
        f"and {shares[0]:.2%} of those of {len(allowed)} training behaviours with the profiles of their users",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_read": read,
        "share_of_histories_read": shares[0],
        "share_of_descriptions_read": shares[1],
        "loss_by_epoch": losses,
        "settings": settings.model_dump(),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1))
    return {**card, "seconds": time.perf_counter() - started}


def _train(
    model: Any,
    tokens: PromptTokens,
    pieces: HistoryPieces,
    described: IntArray,
    settings: LanguageModelSettings,
    report: Callable[..., None],
) -> tuple[list[float], int, list[float]]:
    """AdamW with a short warm-up and a cosine to zero.

    Returns:
        Each epoch's loss of every token but the first; tokens in all; the shares that were read of the tokens of
        histories and of descriptions.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    generator = np.random.default_rng(settings.seed)
    losses = []
    kinds = np.zeros((2, 2), dtype=np.int64)  # tokens chosen and tokens there are, of histories and of descriptions
    step = read = 0
    started = time.perf_counter()
    most = settings.tokens // settings.epochs
    model.train()
    for epoch in range(settings.epochs):
        histories = pieces.of_epoch(generator)
        chosen = _choose(histories, described, tokens, most, generator)
        kinds += [[_lengths(tokens, rows).sum() for rows in part] for part in (chosen, (histories, described))]
        batches = list(_batches(tokens, np.concatenate(chosen), settings.batch_tokens, generator))
        total = len(batches) * settings.epochs
        loss_sum = 0.0
        counted = 0
        for number, batch in enumerate(batches, start=1):
            warm = min(1.0, (step + 1) / (0.02 * total + 1))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))
            states = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
            wanted = batch.mask[:, 1:]
            count = int(wanted.sum())
            # Logits are most of a small model's work: none for padding.
            loss = full_softmax_loss(states[:, :-1][wanted], model.lm_head.weight, batch.tokens[:, 1:][wanted]) / count
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if not math.isfinite(float(loss.detach())):
                raise InputError(
                    f"scratch language model: the loss is {float(loss.detach())} at epoch {epoch + 1}, step {number} "
                    f"of {len(batches)}; lower learning_rate of base_language_model"
                )
            loss_sum, counted, step = loss_sum + float(loss.detach()) * count, counted + count, step + 1
            report(
                stage="scratch language model", epoch=epoch + 1, epochs=settings.epochs, step=number,
                steps=len(batches), loss=loss_sum / counted,
                eta_s=(time.perf_counter() - started) / step * (total - step),
            )  # fmt: skip
        losses.append(loss_sum / counted)
        read += counted
    model.eval()
    return losses, read, (kinds[0] / np.maximum(kinds[1], 1)).tolist()


def _choose(
    histories: IntArray, described: IntArray, tokens: PromptTokens, most: int, generator: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """An epoch's histories and descriptions, at most ``most`` tokens together.

    Nothing else tells what an item is, so descriptions come first; but they leave the histories half, if need be.
    """
    room = max(most // 2, most - int(_lengths(tokens, histories).sum()))
    described = _some(described, tokens, room, generator)
    return _some(histories, tokens, most - int(_lengths(tokens, described).sum()), generator), described


def _some(rows: IntArray, tokens: PromptTokens, most: int, generator: np.random.Generator) -> IntArray:
    """Documents of at most ``most`` tokens: all of them, or as many drawn at random."""
    lengths = _lengths(tokens, rows)
    if lengths.sum() <= most:
        return rows
    drawn = generator.permutation(len(rows))
    return rows[drawn[: int(np.searchsorted(lengths[drawn].cumsum(), most, side="right"))]]


def _lengths(tokens: PromptTokens, rows: IntArray) -> IntArray:
    """(D,) tokens of documents, without what goes before them."""
    return np.minimum(tokens.part_lengths(rows).sum(1), tokens.limit - len(tokens.before))


def _batches(
    tokens: PromptTokens, rows: IntArray, batch_tokens: int, generator: np.random.Generator
) -> Iterator[PaddedBatch]:
    """Documents of similar length together, in random order."""
    documents = tokens.prompts(rows)
    groups = list(by_length(documents.lengths, batch_tokens, least=0))  # smaller ones would make steps uneven
    for number in generator.permutation(len(groups)):
        yield pad(documents.tokens, documents.lengths, groups[number], torch.device("cpu"))


def work(job: dict[str, Any], reporter: ProgressReporter) -> None:
    """Worker entry: ``job`` holds ``settings``, ``has_clock``, the two answers ``yes`` and ``no``, the artifact folders
    `interactions`, `ctr_samples` and `textual_samples`, and the folder ``output``.

    A model this small trains in one process; the others have nothing to do.
    """
    if launched_rank():
        return
    keep_freed_memory()
    settings = LanguageModelSettings(**job["settings"])
    samples = CtrSamples.load(Path(job["ctr_samples"]))
    interactions = Path(job["interactions"])
    timestamp = pd.read_parquet(interactions / "interactions.parquet", columns=["timestamp"])["timestamp"].to_numpy()
    text, output = Path(job["textual_samples"]), Path(job["output"])
    train_scratch(
        PromptParts.load(text),
        Catalogue.load(text),
        load_items(interactions),
        samples.offsets,
        training_positions(samples, timestamp, job["has_clock"]),
        (job["yes"], job["no"]),
        settings,
        output,
        reporter.report,
    )
    ModelReference(SCRATCH, "", output, settings.quantisation, settings.max_tokens).save(output)


if __name__ == "__main__":
    worker_main(work)
