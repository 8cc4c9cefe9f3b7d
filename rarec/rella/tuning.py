"""Tuning a LoRA adapter on yes/no answers (ReLLa, section 3.3; LoRA: arXiv 2106.09685).

The loss is the cross-entropy of the answer's first token over the whole vocabulary, averaged over a step's answers. The
language model below the adapter is frozen.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rarec.data.ctr import draw
from rarec.errors import InputError
from rarec.metrics.ctr import METRICS, ctr_metrics
from rarec.rella.language_model import SCRATCH, Answers, PaddedBatch, last_logits, pad
from rarec.rella.prompt_source import PromptJob, PromptSource, open_prompts
from rarec.rella.scoring import out_of_memory, score
from rarec.rella.training_samples import TrainingSamples
from rarec.text.tokens import PromptTokens, by_length
from rarec.training.device import on_device
from rarec.training.dropout import random_state, restore_random_state
from rarec.training.engine import is_sharded, keep_freed_memory, rank, shard, unshard, worker_device, world_size
from rarec.training.engine_settings import EngineSettings
from rarec.training.fit import FitSettings, fit
from rarec.training.job import Place
from rarec.training.out_of_memory import explain_out_of_memory
from rarec.training.progress import ProgressReporter, ReportProgress, quiet, worker_main
from rarec.types import Float64Array, IntArray

TUNING = "tuning.json"


class TuningSettings(FitSettings):
    """LoRA and its training. Defaults are the paper's (section 4.1.4), unless a field says otherwise."""

    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's peak learning rate.")
    epochs: int = Field(default=5, ge=1, description="Most epochs to train.")
    patience: int = Field(
        default=2, ge=1, description="Epochs without a better validation AUC after which tuning stops."
    )
    schedule: Literal["constant", "linear"] = Field(
        default="linear", description="Learning rate schedule over all epochs: constant, or linear to zero."
    )
    batch_size: int = Field(default=256, ge=1, description="Prompts per step, over all processes.")
    piece_tokens: int = Field(
        default=8192, ge=64, description="Most tokens of the padded pieces into which a step is cut to fit into memory."
    )
    rank: int = Field(default=8, ge=1, description="LoRA's rank, r.")
    alpha: int = Field(default=16, ge=1, description="LoRA's alpha: updates are scaled by alpha / r.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before the adapter's matrices.")
    targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"), description="Names of the linear layers to adapt.")
    validation_prompts: int = Field(
        default=2000, ge=2, description="Validation samples to score after each epoch, drawn with the seed."
    )
    loss_over: Literal["auto", "vocabulary", "answers"] = Field(
        default="auto",
        description="Tokens over which the loss is computed: the vocabulary, as in the paper; only the two answers, "
        "for a model that was never taught to answer questions; or auto: the answers for a model trained here "
        "(`scratch`), the vocabulary for any other.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations instead of keeping them: less memory, more time."
    )

    def for_model(self, source: str) -> "TuningSettings":
        """These settings for a language model from ``source``, with ``loss_over`` decided."""
        if self.loss_over != "auto":
            return self
        return self.model_copy(update={"loss_over": "answers" if source == SCRATCH else "vocabulary"})


def untie(model: Any, targets: Collection[str]) -> None:
    """Give the output layer weights of its own if an adapter's ``targets`` include it and it shares the embeddings'.

    An adapter changes one layer. Merged into shared weights, it would change both.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module in (head, embeddings)}
    if head is None or head.weight is not embeddings.weight or names.isdisjoint(targets):
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=False)


def add_adapter(model: Any, settings: TuningSettings, seed: int) -> Any:
    """The model with a new LoRA adapter on the layers that ``targets`` name. Everything else is frozen.

    If one of them shares its weights with the embeddings, it gets its own; see `untie`.

    Raises:
        InputError: There is no linear layer with one of these names; lists those that there are.
    """
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    kinds = {"Linear", "Conv1D", "Linear8bitLt", "Linear4bit"}
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ in kinds}
    missing = [target for target in settings.targets if target not in names]
    if missing:
        raise InputError(
            f"targets: the language model has no linear layer named {', '.join(missing)}; it has "
            f"{', '.join(sorted(names))}"
        )
    untie(model, settings.targets)
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
    elif settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(seed)
    configuration = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    return get_peft_model(model, configuration)


class AnswerLoss(nn.Module):
    """The model, and the cross-entropy of the answers' first tokens."""

    def __init__(self, model: Any, among: Tensor | None = None):
        super().__init__()
        self.model = model
        self._among = among  # tokens over which the loss is computed; None for all

    def forward(self, batch: "Piece") -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a piece."""
        with explain_out_of_memory(out_of_memory(batch.prompts, "piece_tokens")):
            logits = last_logits(self.model, batch.prompts)  # (B, V)
        if self._among is not None:
            logits = logits[:, self._among]  # (B, 2)
        loss = F.cross_entropy(logits.float(), batch.answers, reduction="none")  # (B,)
        return (loss * batch.weights).sum(), {}


@dataclass(frozen=True)
class Piece:
    """B prompts, the classes of their answers (B,), and their weights (B,)."""

    prompts: PaddedBatch
    answers: Tensor
    weights: Tensor


class TuningObjective:
    """Data order, batches and validation of adapter tuning."""

    choice = "AUC"

    def __init__(
        self,
        model: Any,
        source: PromptSource,
        prompts: PromptTokens,
        training: TrainingSamples,
        answers: Answers,
        settings: TuningSettings,
        seed: int,
        device: torch.device,
        accumulation: int = 1,
        report: ReportProgress = quiet,
    ):
        # Classes of the answers in the loss: tokens, or indices of the two.
        few = settings.loss_over == "answers"
        self.classes = [0, 1] if few else answers.tokens
        self.model = AnswerLoss(model, torch.tensor(answers.tokens, device=device) if few else None)
        self.prompts = prompts
        self.settings = settings
        self.seed = seed
        self.answers = answers
        self.device = device
        self.accumulation = accumulation
        self.report = partial(report, stage="adapter tuning, validation")
        self.parts = source.rows(training.sample, training.retrieved)
        self.label = source.samples.label[training.sample]
        made = prompts.prompts(self.parts)
        self.lengths, self.dropped = made.lengths, int(made.dropped.sum())
        validation = draw(source.samples, "valid", settings.validation_prompts, seed)
        self.validation_label = source.samples.label[validation]
        if self.validation_label.all() or not self.validation_label.any():
            raise InputError(
                f"all {len(validation)} validation samples have the same label, so there is no AUC to choose by; raise "
                "validation_prompts"
            )
        # Validated as it will be used: with retrieved histories, unless it is tuned without them.
        self.validation_parts = source.rows(validation, bool(training.retrieved.any()))
        self._steps: list[IntArray] = []

    def start_epoch(self, epoch: int) -> int:
        """Shuffle the prompts into steps."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.parts))
        self._steps = np.split(order, range(self.settings.batch_size, len(order), self.settings.batch_size))
        torch.manual_seed(hash((self.seed, epoch, rank())) % 2**31)
        return len(self._steps)

    def batches(self, first: int = 0) -> Iterator[tuple[Sequence[Piece], int]]:
        """This rank's prompts of every step, in pieces of similar length; all ranks have equally many pieces."""
        for step in self._steps[first:]:
            cuts = [self._cut(step[number :: world_size()]) for number in range(world_size())]
            pieces = [self._piece(rows) for rows in cuts[rank()]]
            if lacking := max(map(len, cuts)) - len(pieces):
                # A rank with fewer pieces, or without prompts, takes part with pieces of weight 0.
                pieces += [self._piece(step[:1], weight=0.0)] * lacking
            yield pieces, len(step)

    def _cut(self, own: IntArray) -> list[IntArray]:
        """Pieces of at most ``piece_tokens``; at least ``accumulation`` of them, if there are that many prompts."""
        parts = np.array_split(own, self.accumulation)
        return [part[rows] for part in parts for rows in by_length(self.lengths[part], self.settings.piece_tokens)]

    def random_state(self) -> dict[str, Tensor]:
        """PyTorch's own generators, from which PEFT's dropout draws."""
        return random_state(self.device)

    def restore_random_state(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        restore_random_state(state, self.device)

    def _piece(self, rows: IntArray, weight: float = 1.0) -> Piece:
        made = self.prompts.prompts(self.parts[rows])
        answers = np.array(self.classes)[self.label[rows].astype(np.int64)]
        return Piece(
            pad(made.tokens, made.lengths, np.arange(len(rows)), self.device),
            on_device(torch.from_numpy(answers), self.device),
            torch.full((len(rows),), weight, device=self.device),
        )

    def _probability(self) -> Float64Array:
        """(V,) probabilities of the validation samples."""
        every = np.arange(len(self.validation_parts))
        # With ZeRO-3, a forward pass needs all ranks, so all of them go through the same batches.
        chosen = every if is_sharded(self.model) else shard(every)
        own, _ = score(
            self.model.model, self.prompts, self.validation_parts[chosen], self.answers, self.device,
            self.settings.piece_tokens, self.report, setting="piece_tokens",
        )  # fmt: skip
        return own if len(own) == len(every) else unshard(torch.from_numpy(own), len(every)).numpy()

    def validate(self) -> dict[str, float]:
        """`METRICS` of the validation samples."""
        probability = self._probability()
        if not np.isfinite(probability).all():
            raise InputError(
                "the adapter's probabilities are no longer finite; lower learning_rate. The checkpoint of the last "
                "complete epoch is kept."
            )
        figures = ctr_metrics(probability, self.validation_label)
        return dict(zip(METRICS, figures.tolist(), strict=True))


def tune(
    objective: TuningObjective,
    base: str,
    output: Path,
    checkpoint: Path,
    report: ReportProgress,
    engine: EngineSettings | None = None,
) -> dict[str, Any]:
    """Tune, and write the adapter into ``output`` in PEFT's format. ``base`` is the language model's fingerprint."""
    summary = fit(
        objective, objective.settings, stage="adapter tuning", output=output, checkpoint=checkpoint, report=report,
        engine=engine,
    )  # fmt: skip
    if rank() == 0:
        adapted = objective.model.model
        _save_adapter(adapted, base, output)
        record = {
            "base": base,
            "seed": objective.seed,
            "behaviours_dropped": objective.dropped,
            "settings": objective.settings.model_dump(mode="json"),
        }
        (output / TUNING).write_text(json.dumps(record, indent=1))
    return summary


def _save_adapter(adapted: Any, base: str, output: Path) -> None:
    """Write PEFT's format without what differs between machines: paths, the order of sets, a model card."""
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(output, save_embedding_layers=False)
    (output / "README.md").unlink(missing_ok=True)
    file = output / "adapter_config.json"
    config = json.loads(file.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=1, sort_keys=True))


def load_adapter(model: Any, folder: Path, base: str) -> Any:
    """The language model with the adapter that `tune` wrote.

    Raises:
        InputError: The adapter was tuned on another language model.
    """
    from peft import PeftConfig, PeftModel

    record = json.loads((folder / TUNING).read_text())
    if record["base"] != base:
        raise InputError(
            f"the adapter in {folder} was tuned on language model {record['base']} and cannot serve {base}; "
            "materialise `lora_checkpoint` again"
        )
    untie(model, {name.rsplit(".", 1)[-1] for name in PeftConfig.from_pretrained(str(folder)).target_modules})
    return PeftModel.from_pretrained(model, folder).eval()


class TuningJob(PromptJob):
    """Tune a LoRA adapter of the language model."""

    settings: TuningSettings
    seed: int
    training_samples: Path = Field(description="Folder in which the prompts that train were saved.")
    histories: Path | None = Field(
        default=None, description="Folder of other histories than those of the artifacts, as `save_histories` writes."
    )
    random: bool = Field(default=False, description="Draw behaviours at random instead of retrieving them; a control.")


def work(job: TuningJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry."""
    keep_freed_memory()
    source, reference, prompts, answers = open_prompts(job, job.histories)
    if job.random:
        source = source.randomised(job.seed)
    settings = job.settings.for_model(reference.source)
    objective = TuningObjective(
        add_adapter(reference.model(worker_device()), settings, job.seed),
        source,
        prompts,
        TrainingSamples.load(job.training_samples),
        answers,
        settings,
        job.seed,
        worker_device(),
        place.engine.accumulation,
        reporter.report,
    )
    tune(objective, job.base, place.output, place.checkpoint, reporter.report, place.engine)


if __name__ == "__main__":
    worker_main(TuningJob, work)
