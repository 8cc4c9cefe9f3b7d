"""Group `reports`: figures of the ReLLa track."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from assets.baselines.ctr import baseline_probabilities
from assets.data.clean import load_counts, load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.rella.text import labels
from assets.reports.publish import course, effort, image, links_to, load_efforts, log_report
from rarec.baselines.ctr import ALL_SAMPLES
from rarec.data.ctr import CtrSamples
from rarec.metrics.ctr import ctr_metrics as figures_of
from rarec.rella.language_model import SCRATCH, read_untuned
from rarec.rella.predict import SCORED, comparisons, controls, untuned
from rarec.rella.prompt_source import PromptSource
from rarec.rella.training_samples import HISTORIES, Variant, asked, load_variants, shots
from rarec.rella.vectors import VECTORS
from rarec.reports.ctr import report as reports
from rarec.reports.ctr.histories import heterogeneity, similarity
from rarec.reports.ctr.inputs import CtrReportSettings
from rarec.reports.records import SPLIT_NAMES, Effort
from rarec.training.fit import HISTORY
from rarec.types import Float64Array, Split
from resources.artifacts.store import Artifact
from resources.mlflow.tracked_run import TrackedRun

REPORTED = (
    "interactions",
    "item_catalog",
    "ctr_samples",
    "textual_samples",
    "semantic_item_vectors",
    "retrieval_enhanced_samples",
    "base_language_model",
    "mixed_reit_samples",
    "lora_checkpoint",
    "ctr_predictions",
    "ctr_baselines",
)
PEERS = ("peer_predictions", "click_predictions")
PROMPT_SOURCE = ("interactions", "ctr_samples", "textual_samples", "retrieval_enhanced_samples")


@stage(
    group="reports",
    track="rella",
    version="4",
    settings=CtrReportSettings,
    inputs=REPORTED,
    kinds={"json", "html"},
    extras=lambda request: {
        "title": request.spec.title,
        **labels(request),
    },
    read_weekly=True,
)
def ctr_metrics(job: Job[CtrReportSettings]) -> Outcome:
    """AUC, LogLoss, ACC and calibration, untuned and tuned, recent and retrieved, and of simple methods."""
    return write_report(job)


def write_report(job: Job[CtrReportSettings]) -> Outcome:
    """The report of what is among the inputs: ReLLa, simple methods and, if they are there, other libraries' models."""
    report = _report(job)
    paths = reports.write_ctr_report(report, job.folder)
    log_report(job.run, paths)
    _log_models(job.run, report, job.inputs)
    metrics = {
        f"{SPLIT_NAMES[scores.split]}/{scores.model}/{name}": estimate.value
        for scores in report.scores
        for name, estimate in scores.metrics.items()
    }
    values = {
        f"test {scores.model} AUC": round(scores.metrics["AUC"].value, 4)
        for scores in report.scores
        if scores.split == "test"
    }
    return Outcome(
        values,
        {"plot": image(paths.plots["metrics"], "metrics"), "tables": reports.ctr_markdown_tables(report)},
        metrics,
        files={"report": paths.html.name},
    )


def _log_models(run: TrackedRun, report: reports.CtrReport, inputs: Mapping[str, Artifact]) -> None:
    """One nested run per model, so that MLflow can compare untuned with tuned, with their settings."""
    stages = {name: inputs[name].manifest.config for name in ("textual_samples", "lora_checkpoint")}
    run.log_params(stages)
    for model in report.models:
        tuned = model in report.seeds
        params: dict[str, Any] = {"model": model, "textual_samples": stages["textual_samples"]}
        params |= {"lora_checkpoint": stages["lora_checkpoint"], "seed": report.seeds[model]} if tuned else {}
        with run.nested(model, params) as nested:
            nested.log_metrics(
                {
                    f"{SPLIT_NAMES[split]}/{name}": estimate.value
                    for split in report.splits
                    for name, estimate in report.of(model, split).items()
                }
            )


def _report(job: Job[CtrReportSettings]) -> reports.CtrReport:
    spec, inputs = job.spec, job.inputs
    source = PromptSource.load(**{name: job.path(name) for name in PROMPT_SOURCE})
    samples, items = source.samples, source.items
    vectors = np.load(inputs["semantic_item_vectors"].path / VECTORS)
    genres = load_table(inputs["item_catalog"], "items")["genres"]
    predicted = {split: pd.read_parquet(inputs["ctr_predictions"].file(f"{split}.parquet")) for split in SCORED}
    rows = {split: own["sample"].to_numpy() for split, own in predicted.items()}
    baselines = {split: baseline_probabilities(inputs["ctr_baselines"], split, own) for split, own in rows.items()}
    # The best one on validation is what the model is compared with.
    yardstick = max(
        baselines["valid"], key=lambda name: figures_of(baselines["valid"][name], samples.label[rows["valid"]])[0]
    )
    names = [name for name in predicted["test"].columns if name not in ("sample", "label")]
    outcomes = [
        reports.CtrOutcome(name, split, own[name].to_numpy()) for name in names for split, own in predicted.items()
    ]
    peers: dict[Split, dict[str, Float64Array]] = {
        split: {
            model: probability
            for name in PEERS
            if name in inputs
            for model, probability in baseline_probabilities(inputs[name], split, own).items()
        }
        for split, own in rows.items()
    }
    outcomes += [
        reports.CtrOutcome(name, split, probability)
        for others in (baselines, peers)
        for split, own in others.items()
        for name, probability in own.items()
    ]
    lora = inputs["lora_checkpoint"]
    variants = load_variants(lora.path)
    chosen = variants[0].label("retrieved")
    train = samples.rows("train")
    counts = np.bincount(items[samples.position[train]], minlength=int(items.max()) + 1)
    time = load_counts(inputs["interactions"])["time"]
    return reports.build_ctr_report(
        outcomes,
        labels={split: samples.label[own] for split, own in rows.items()},
        users={split: source.user(own) for split, own in rows.items()},
        history_length={split: (samples.position - samples.history_start)[own] for split, own in rows.items()},
        target_count={split: counts[items[samples.position[own]]] for split, own in rows.items()},
        dataset=spec.title,
        data_version=inputs["ctr_samples"].data_version,
        seeds={variant.label(history): variant.seed for variant, history in asked(variants)},
        split_rule=_split_rule(inputs, samples, time),
        yardstick=yardstick,
        chosen=chosen,
        read=_read(inputs, variants, list(baselines["test"]), list(peers["test"])),
        comparisons=[*((name, chosen) for name in peers["test"]), *comparisons(variants)],
        controls=controls(variants),
        heterogeneity=heterogeneity(source, vectors, genres, rows["test"]),
        similarity=similarity(source, vectors, rows["test"]),
        seed_runs=[
            reports.SeedRun(mode=v.mode, seed=v.seed, history=history, model=v.label(history))
            for v, history in asked(variants)
        ],
        curves=[
            reports.TrainingCurve(model=v.name, **course(lora.file(f"{v.name}/{HISTORY}"), ("AUC",))) for v in variants
        ],
        efforts=[
            *_efforts(inputs, variants[0]),
            *(one for name in PEERS if name in inputs for one in load_efforts(inputs[name])),
        ],
        prompts=_prompts(source, rows["test"][:1]),
        links=links_to(job.run),
        notes=_notes(inputs),
        resamples=job.settings.resamples,
    )


def _efforts(inputs: Mapping[str, Artifact], first: Variant) -> list[Effort]:
    """What the model's trainings took: of the language model, if it was trained here, and of its adapter."""
    base, lora = inputs["base_language_model"], inputs["lora_checkpoint"]
    places = {f"adapter {first.name}": (lora.metadata["values"], lora.file(f"{first.name}/{HISTORY}"))}
    if base.manifest.config["source"] == SCRATCH:
        places = {"scratch language model": (base.metadata["values"], base.file(HISTORY)), **places}
    return [effort(name, *place, "AUC") for name, place in places.items()]


def _read(
    inputs: Mapping[str, Artifact], variants: Sequence[Variant], baselines: Sequence[str], peers: Sequence[str]
) -> dict[str, str]:
    """What of the training data each model was fitted on."""
    base, drawn = inputs["base_language_model"].manifest.config, inputs["mixed_reit_samples"].metadata["values"]
    before = read_untuned(base["source"], base.get("ratings", True))
    full, few = f"{drawn['training_samples']:,} answers", f"{drawn['shots']:,} answers"
    tuned = {
        variant.label(history): f"{before}; {shots(drawn['shots'], variant.mode):,} answers"
        for variant, history in asked(variants)
    }
    # A simple method's numbers count likes in all of the training split, whatever they are fitted on.
    simple = {
        name: full if name.endswith(ALL_SAMPLES) else f"{few}; counts of every training rating" for name in baselines
    }
    others = {name: full if name.endswith(ALL_SAMPLES) else few for name in peers}
    return {**{untuned(history): before for history in HISTORIES}, **tuned, **simple, **others}


def _split_rule(inputs: Mapping[str, Artifact], samples: CtrSamples, time: str) -> str:
    settings = inputs["ctr_samples"].manifest.config
    shares = f"{settings['train_share']:.0%} train, {settings['valid_share']:.0%} validate, the rest test"
    if time == "clock":
        rule = f"Samples in order of global time: the first {shares}."
    else:
        rule = (
            "The data have no clock: each user's last interaction is their sample, and users are split with seed "
            f"{settings['seed']}: {shares}."
        )
    predicted = inputs["ctr_predictions"]
    drawn = [
        f"{predicted.metadata['values'][f'{split} samples']:,} of the {SPLIT_NAMES[split]} samples are drawn with seed "
        f"{predicted.manifest.config['seed']}."
        for split in SCORED
        if predicted.metadata["values"][f"{split} samples"] < samples.rows(split).stop - samples.rows(split).start
    ]
    return " ".join([rule, *drawn])


def _prompts(source: PromptSource, shown: np.ndarray) -> list[reports.PromptPreview]:
    """The prompt of the one sample ``shown``, with either history."""
    return [
        reports.PromptPreview(
            title=f"First test sample, {history} behaviours",
            text=source.parts.text(source.rows(shown, history == "retrieved")[0]),
        )
        for history in HISTORIES
    ]


def _notes(inputs: Mapping[str, Artifact]) -> list[str]:
    predictions = inputs["ctr_predictions"].metadata["values"]
    text = inputs["textual_samples"].metadata["values"]
    return [
        f"Prompts hold at most {text['behaviours']} behaviours; {predictions['behaviours_dropped']:,} behaviours of "
        f"{predictions['prompts']:,} prompts were left out for the language model's token limit.",
        "Five numbers: length, mean rating and share of likes of the user's history, count and share of likes of the "
        "item. Nine: also the mean rating, and the mean rating minus the items' means, of the latest 10 behaviours and "
        "of the 10 whose items most users had together with the target. Eleven: also the rating of the latest "
        "behaviour, and how far the rating that a factor model expects lies above a dislike, in standard deviations. "
        "That model is fitted to training ratings (of other users, for a training sample), and folded in behaviour by "
        "behaviour. "
        "The model is compared with the method that is best on validation.",
        "Adapters are chosen on validation AUC. These figures of the test split are of `ctr_predictions` and choose "
        "nothing; `rella_candidate` scores test samples of its own draw to decide what becomes champion.",
    ]
