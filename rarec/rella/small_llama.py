"""A small Llama trained on the data set itself, for use without pre-trained weights.

It reads the catalogue and the training histories, so it knows titles and, unless ``ratings`` is false, every training
rating: it is no few-shot learner, however few answers tune its adapter. It is not a general language model, and its
card says so. It reads nothing of validation or test: a behaviour is training text only if it happened before the first
validation sample.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rarec.data.ctr import CtrSamples
from rarec.data.sequences import ranges
from rarec.rella.language_model import SCRATCH, LanguageModelSettings, ModelReference
from rarec.rella.prompt_source import load_items
from rarec.rella.small_llama_training import CLIP, SHARES, HistoryPieces, ScratchObjective, adam_w
from rarec.text.prompts import NO_PART, Catalogue, PromptParts
from rarec.text.tokens import PromptTokens
from rarec.training.engine import from_rank_0, join_group, keep_freed_memory, rank, worker_device
from rarec.training.engine_settings import EngineSettings
from rarec.training.fit import fit
from rarec.training.job import Place, WorkerJob
from rarec.training.progress import ProgressReporter, ReportProgress, worker_main
from rarec.types import IntArray

BOS, EOS = "<s>", "</s>"
CARD = "card.json"
INITIAL_SCALE = 0.5
LEARNED = 512  # least number of tokens learned from texts, including the 256 bytes


def load_card(folder: Path) -> dict[str, Any]:
    """The card in a small Llama's folder: what it is, and what it was trained on."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    return card


def train_tokenizer(texts: list[str], vocabulary: int, names: Sequence[str] = (), answers: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer with at most ``vocabulary`` tokens.

    ``answers``, after a space, and ``names`` become single tokens, as long as `LEARNED` tokens are left to learn from
    ``texts``. Texts are split only at colons and line ends, so words that always go together become one token.
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


def new_small_llama(tokenizer: Any, settings: LanguageModelSettings) -> Any:
    """A small Llama for ``tokenizer``, with random weights from the settings' seed."""
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
            # Llama's 0.02 is meant for a width of thousands; with it, a narrow model hardly leaves uniform attention.
            initializer_range=INITIAL_SCALE * settings.dim**-0.5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def training_positions(samples: CtrSamples, timestamp: IntArray, has_clock: bool) -> IntArray:
    """Interactions that the model may read: those before the first validation sample.

    Without a clock, these are all interactions of users whose only sample is a training sample.
    """
    if has_clock:
        first = timestamp[samples.position[samples.rows("valid")]].min()
        return np.flatnonzero(timestamp < first)
    users = samples.user[samples.rows("train")]
    lengths = np.diff(samples.offsets)[users]
    return np.sort(ranges(samples.offsets[users], lengths))


def without_ratings(parts: PromptParts, names: Sequence[str], items: IntArray) -> PromptParts:
    """The same parts, but the line of each of the M interactions has only the name of its item (``items``, (M,))."""
    lines = [f"{name}\n" for name in names]
    texts = [*parts.texts[: parts.lines], *lines, *parts.texts[parts.questions :]]
    return replace(parts, texts=texts, questions=parts.lines + len(lines), line_of=items)


def train_small_llama(
    parts: PromptParts,
    catalogue: Catalogue,
    items: IntArray,
    offsets: IntArray,
    allowed: IntArray,
    answers: tuple[str, str],
    settings: LanguageModelSettings,
    folder: Path,
    checkpoint: Path,
    report: ReportProgress,
    engine: EngineSettings | None = None,
) -> dict[str, Any]:
    """Train a tokenizer and a model, and write them into ``folder`` with a card. All ranks train one model.

    Args:
        parts: Parts of the prompts. Only lines of interactions in ``allowed`` are read.
        items: (M,) item of each interaction.
        offsets: (U + 1,) where each user's interactions begin.
        allowed: Interactions that may be read, ascending.
        answers: The words for yes and no.

    Returns:
        The card; empty on other ranks than 0.
    """
    engine, device = engine or EngineSettings(), worker_device()
    join_group(device)
    if not settings.ratings:
        parts = without_ratings(parts, catalogue.names, items)
    readable = np.unique(parts.line_of[allowed]) + parts.lines
    # All prompts have the heading and the words of the question, so these should take few tokens.
    always = [parts.texts[parts.lines - 1]] * len(catalogue.names) + parts.texts[parts.questions :]
    texts = [
        *parts.texts[: parts.lines - 1],
        *always,
        *(parts.texts[line] for line in readable),
        *catalogue.descriptions,
    ]
    count = np.bincount(items[allowed], minlength=len(catalogue.names))
    names = [catalogue.names[item] for item in np.argsort(-count, kind="stable").tolist() if count[item]]
    tokenizer: Any = from_rank_0(
        train_tokenizer(texts, settings.vocabulary, list(dict.fromkeys(names)), answers) if rank() == 0 else None
    )
    # Descriptions are documents, too: a single part, in the place of the question.
    known = replace(parts, texts=[*parts.texts, *(f"{text}\n" for text in catalogue.descriptions)])
    tokens = PromptTokens.of(known, tokenizer, settings.max_tokens)
    described = np.full((len(catalogue.descriptions), settings.behaviours + 3), NO_PART)
    described[:, -1] = len(parts.texts) + np.arange(len(described))
    model = new_small_llama(tokenizer, settings)
    pieces = HistoryPieces(parts, offsets, allowed, settings.behaviours)
    objective = ScratchObjective(model, tokens, pieces, described, settings, device, engine.accumulation)
    summary = fit(
        objective, objective.fit_settings(), stage="scratch language model", output=folder, checkpoint=checkpoint,
        report=report, engine=engine, optimizer=adam_w, clip=CLIP, unit="tokens",
    )  # fmt: skip
    if rank():
        return {}
    shares = [float(np.mean([record[name] for record in summary["history"]])) for name in SHARES]
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {
        "what": "a small Llama trained by RaRec on one data set; not a general language model",
        "read": f"in a mean epoch {shares[1]:.2%} of the tokens of {len(catalogue.descriptions)} item descriptions, "
        f"and {shares[0]:.2%} of those of {len(allowed)} training behaviours with the profiles of their users, "
        f"{'each with its rating' if settings.ratings else 'without ratings'}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_read": summary["tokens"],
        **dict(zip(SHARES, shares, strict=True)),
        "loss_by_epoch": [record["loss"] for record in summary["history"]],
        "settings": settings.model_dump(),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1))
    return card


class SmallLlamaJob(WorkerJob):
    """Train a small Llama on a data set's own text; the folders are those of the artifacts of the same name."""

    settings: LanguageModelSettings
    interactions: Path
    ctr_samples: Path
    textual_samples: Path
    has_clock: bool
    yes: str
    no: str


def work(job: SmallLlamaJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry."""
    keep_freed_memory()
    settings, output = job.settings, place.output
    samples = CtrSamples.load(job.ctr_samples)
    timestamp = pd.read_parquet(job.interactions / "interactions.parquet", columns=["timestamp"])["timestamp"]
    train_small_llama(
        PromptParts.load(job.textual_samples),
        Catalogue.load(job.textual_samples),
        load_items(job.interactions),
        samples.offsets,
        training_positions(samples, timestamp.to_numpy(), job.has_clock),
        (job.yes, job.no),
        settings,
        output,
        place.checkpoint,
        reporter.report,
        place.engine,
    )
    if rank() == 0:
        ModelReference(SCRATCH, "", output, settings.quantisation, settings.max_tokens).save(output)


if __name__ == "__main__":
    worker_main(SmallLlamaJob, work)
