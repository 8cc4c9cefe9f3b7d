"""Group `reports`: figures of the ReLLa track, and both tracks side by side."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.data.raw import load_counts, load_table
from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, resolve, takes, upstream
from assets.reports.ranking import course, image, links_to, log_report
from rarec.baselines.ctr_logistic import fit_and_predict, five_numbers
from rarec.config import Settings
from rarec.data.ctr import CtrSamples
from rarec.data.spec import DatasetSpec
from rarec.metrics.histories import distinct_genres, genre_matrix, mean_similarity, random_behaviours
from rarec.rella.predict import SCORED, untuned
from rarec.rella.prompt_source import PromptSource
from rarec.rella.training_samples import HISTORIES, Variant, load_variants
from rarec.rella.vectors import VECTORS
from rarec.reports.comparison import (
    build_comparison_report,
    comparison_markdown,
    write_comparison_report,
)
from rarec.reports.ctr import report as reports
from rarec.reports.ranking.records import RankingReport
from rarec.reports.records import Split
from rarec.retrieval.subr import recent_behaviours, retrieve_behaviours
from rarec.training.fit import HISTORY
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

CTR_VERSION = "2"
COMPARISON_VERSION = "1"
INPUTS = (
    "interactions", "item_catalog", "ctr_samples", "textual_samples", "semantic_item_vectors",
    "retrieval_enhanced_samples", "lora_checkpoint", "ctr_predictions",
)  # fmt: skip
YARDSTICK = "logistic regression on five numbers"
SPLIT_NAMES: dict[str, Split] = {"valid": "validation", "test": "test"}
STUDIED = 5000  # test samples whose histories are looked at
SIZES = (5, 10, 15, 20, 25, 30)


class CtrReportSettings(Settings):
    """How sure the figures are."""

    resamples: int = pydantic.Field(default=1000, ge=100, description="Draws of users behind each 95 % interval.")


@takes(CtrReportSettings)
class CtrReportConfig(StageConfig):
    """Run configuration of `ctr_metrics`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"ctr_metrics": CtrReportSettings}


@dg.asset(
    deps=list(INPUTS),
    group_name="reports",
    kinds={"json", "html"},
    owners=[OWNER],
    code_version=CTR_VERSION,
)
@refuse_bad_input
def ctr_metrics(
    context: dg.AssetExecutionContext,
    config: CtrReportConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """AUC, LogLoss, ACC and calibration, zero-shot and tuned, recent and retrieved, against five plain numbers."""
    spec = folders.spec(context.partition_key)
    settings = resolve(CtrReportSettings, config, spec, "ctr_metrics")
    inputs = upstream(context, store, *INPUTS)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        report = _report(spec, inputs, settings, links_to(run))
        paths = reports.write_ctr_report(report, folder)
        log_report(run, paths)
        _log_models(run, report, inputs)
        metrics = {
            f"{scores.split}/{scores.model}/{name}": estimate.value
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

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=CTR_VERSION,
        settings={
            **settings.model_dump(mode="json"),
            "title": spec.title,
            "label_threshold": spec.label_threshold,
            "label_comparison": spec.label_comparison,
        },
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["ranking_metrics", "ctr_metrics"],
    group_name="reports",
    kinds={"json", "html"},
    owners=[OWNER],
    code_version=COMPARISON_VERSION,
)
@refuse_bad_input
def comparison_report(
    context: dg.AssetExecutionContext,
    config: StageConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Both tracks' figures of the test split on one page."""
    inputs = upstream(context, store, "ranking_metrics", "ctr_metrics")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        report = build_comparison_report(
            RankingReport.model_validate_json(inputs["ranking_metrics"].file("report.json").read_text()),
            reports.CtrReport.model_validate_json(inputs["ctr_metrics"].file("report.json").read_text()),
            tuple(links_to(run)),
        )
        paths = write_comparison_report(report, folder)
        log_report(run, paths)
        return Outcome(markdown={"tables": comparison_markdown(report)}, files={"report": paths.html.name})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=COMPARISON_VERSION,
        settings={},
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


def _log_models(run: TrackedRun, report: reports.CtrReport, inputs: dict[str, Artifact]) -> None:
    """One nested run a model, so that MLflow sets zero-shot beside tuned, with the settings that made them."""
    stages = {name: inputs[name].manifest.config for name in ("textual_samples", "lora_checkpoint")}
    run.log_params(stages)
    for model in report.models:
        tuned = model in report.seeds
        params: dict[str, Any] = {"model": model, "textual_samples": stages["textual_samples"]}
        params |= {"lora_checkpoint": stages["lora_checkpoint"], "seed": report.seeds[model]} if tuned else {}
        with run.nested(model, params) as nested:
            nested.log_metrics(
                {
                    f"{split}/{name}": estimate.value
                    for split in report.splits
                    for name, estimate in report.of(model, split).items()
                }
            )


def _report(
    spec: DatasetSpec, inputs: dict[str, Artifact], settings: CtrReportSettings, links: list[reports.Link]
) -> reports.CtrReport:
    table = load_table(inputs["interactions"], "interactions")
    rating = table["rating"].to_numpy()
    source = PromptSource.load({name: str(artifact.path) for name, artifact in inputs.items()})
    samples, items = source.samples, source.items
    vectors = np.load(inputs["semantic_item_vectors"].path / VECTORS)
    genres = load_table(inputs["item_catalog"], "items")["genres"]
    predicted = {split: pd.read_parquet(inputs["ctr_predictions"].file(f"{split}.parquet")) for split in SCORED}
    rows = {SPLIT_NAMES[split]: own["sample"].to_numpy() for split, own in predicted.items()}
    yardstick = fit_and_predict(five_numbers(samples, items, rating, spec.is_positive(rating)), samples)
    names = [name for name in predicted["test"].columns if name not in ("sample", "label")]
    outcomes = [
        reports.CtrOutcome(name, SPLIT_NAMES[split], own[name].to_numpy())
        for name in names
        for split, own in predicted.items()
    ]
    outcomes += [reports.CtrOutcome(YARDSTICK, split, yardstick[own]) for split, own in rows.items()]
    lora = inputs["lora_checkpoint"]
    variants = load_variants(lora.path)
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
        seeds={variant.label(history): variant.seed for variant in variants for history in variant.histories()},
        split_rule=_split_rule(inputs, samples, time),
        yardstick=YARDSTICK,
        chosen=variants[0].label("retrieved"),
        comparisons=_comparisons(variants),
        heterogeneity=_heterogeneity(source, vectors, genres, rows["test"]),
        similarity=_similarity(source, vectors, rows["test"]),
        seed_runs=[
            reports.SeedRun(mode=v.mode, seed=v.seed, history=history, model=v.label(history))
            for v in variants
            for history in v.histories()
        ],
        curves=[
            reports.TrainingCurve(model=v.name, **course(lora.file(f"{v.name}/{HISTORY}"), ("AUC",))) for v in variants
        ],
        prompts=_prompts(source, rows["test"][:1]),
        links=links,
        notes=_notes(inputs),
        resamples=settings.resamples,
    )


def _split_rule(inputs: dict[str, Artifact], samples: CtrSamples, time: str) -> str:
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


def _comparisons(variants: list[Variant]) -> list[tuple[str, str]]:
    """(baseline, candidate): does tuning help, does retrieval help, does the mixture help; seed by seed."""
    pairs = [(untuned("recent"), untuned("retrieved")), (untuned("retrieved"), variants[0].label("retrieved"))]
    for mixed in (variant for variant in variants if variant.mode == "mixed"):
        pairs.append((mixed.label("recent"), mixed.label("retrieved")))
        pairs += [
            (other.label("retrieved"), mixed.label("retrieved"))
            for other in variants
            if other.seed == mixed.seed and other.mode != "mixed"
        ]
    return pairs


def _heterogeneity(
    source: PromptSource, vectors: np.ndarray, genres: pd.Series, test: np.ndarray
) -> list[reports.Heterogeneity]:
    """Distinct genres among the K behaviours kept, by K; nothing for a catalogue without genres."""
    if genres.isna().all():
        return []
    matrix = genre_matrix(genres)
    offsets, items = source.samples.offsets, source.items
    position = source.samples.position[_studied(test)]
    found = []
    for k in SIZES:
        kept = {
            "recent": recent_behaviours(offsets, position, k),
            "retrieved": retrieve_behaviours(vectors, items, offsets, position, k),
        }
        for history, distances in kept.items():
            genres_kept = distinct_genres(matrix, items, position, distances)
            found.append(reports.Heterogeneity(history=history, k=k, distinct_genres=genres_kept))  # type: ignore[arg-type]
    return found


def _similarity(source: PromptSource, vectors: np.ndarray, test: np.ndarray) -> list[reports.Similarity]:
    shown = _studied(test)
    samples = source.samples
    position = samples.position[shown]
    lengths = position - samples.offsets[source.user(shown)]
    histories = {
        "retrieved": source.retrieved[shown],
        "recent": source.recent[shown],
        "random": random_behaviours(lengths, source.recent.shape[1], seed=0),
    }
    return [
        reports.Similarity(history=name, cosine=mean_similarity(vectors, source.items, position, distances))  # type: ignore[arg-type]
        for name, distances in histories.items()
    ]


def _studied(test: np.ndarray) -> np.ndarray:
    """Some of the test samples, evenly spread over time."""
    return test[:: max(1, len(test) // STUDIED)]


def _prompts(source: PromptSource, shown: np.ndarray) -> list[reports.PromptPreview]:
    """The prompt of the one sample ``shown``, with either history."""
    return [
        reports.PromptPreview(
            title=f"First test sample, {history} behaviours",
            text=source.parts.text(source.rows(shown, history == "retrieved")[0]),
        )
        for history in HISTORIES
    ]


def _notes(inputs: dict[str, Artifact]) -> list[str]:
    predictions = inputs["ctr_predictions"].metadata["values"]
    text = inputs["textual_samples"].metadata["values"]
    return [
        f"Prompts hold at most {text['behaviours']} behaviours; {predictions['behaviours_dropped']:,} behaviours of "
        f"{predictions['prompts']:,} prompts were left out for the language model's token limit.",
        "The yardstick is fitted on the whole training split: length, mean rating and share of likes of the user's "
        "history, count and share of likes of the item.",
        "Adapters are chosen on validation AUC. These figures of the test split are of `ctr_predictions` and choose "
        "nothing; `rella_candidate` scores test samples of its own draw to decide what becomes champion.",
    ]
