"""Group `reports`: figures of the trained models, as JSON, as a page, in Dagster and in MLflow."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import torch
from PIL import Image

from assets.baselines.ranking import SPLITS, baseline_rankings
from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, upstream
from assets.raserec.recommender import load_recommender
from rarec.reports.page import ReportPaths
from rarec.reports.ranking import report as reports
from rarec.reports.records import Epoch, Link
from rarec.training.fit import HISTORY
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

RANKING_VERSION = "4"
TOP_N = 50
PRETRAINED, FINETUNED = "pre-trained", "fine-tuned"
MODEL = ("user_sequences", "raserec_pretrained", "memory_bank", "raserec_finetuned")


@dg.asset(
    deps=[*MODEL, "ranking_baselines"],
    group_name="reports",
    kinds={"json", "html"},
    owners=[OWNER],
    code_version=RANKING_VERSION,
)
@refuse_bad_input
def ranking_metrics(
    context: dg.AssetExecutionContext,
    config: StageConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """HR, NDCG and MRR of both stages and the baselines by full ranking, masked and unmasked, with groups and
    significance.

    These figures choose nothing. But where few events came after the training, `raserec_candidate` scores the same test
    targets to decide what becomes champion.
    """
    spec = folders.spec(context.partition_key)
    inputs = upstream(context, store, *MODEL, "ranking_baselines")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        sequences, recommender = load_recommender(inputs)
        for stage in (*MODEL[1:], "ranking_baselines"):  # so that runs compare by them
            run.log_params({stage: inputs[stage].manifest.config})
        outcomes = []
        for split, name in SPLITS.items():
            prefixes = sequences.prefixes(split)
            targets = torch.from_numpy(sequences.next_items(prefixes))
            before, after = recommender.represent(sequences, prefixes)
            rankings = baseline_rankings(inputs["ranking_baselines"], split)
            for model, vectors in ((PRETRAINED, before), (FINETUNED, after)):
                rankings[model] = recommender.rank(vectors, sequences, prefixes, TOP_N)
            outcomes += [reports.Outcome(model, name, targets, ranking) for model, ranking in rankings.items()]
            if split == "valid":
                recommender.remember(sequences, prefixes)
        users = sequences.evaluated_users()
        report = reports.build_report(
            outcomes,
            dataset=spec.title,
            data_version=inputs["user_sequences"].data_version,
            seeds=_seeds(inputs),
            split_rule="Leave one out: a user's last item is the test target, the one before it the validation target.",
            training_counts=sequences.train_counts(),
            training_lengths=(sequences.train_ends - sequences.offsets[:-1])[users],
            comparison=(PRETRAINED, FINETUNED),
            curves=[
                _curve(PRETRAINED, inputs["raserec_pretrained"].file(HISTORY)),
                _curve(FINETUNED, inputs["raserec_finetuned"].file(HISTORY)),
            ],
            published=[
                reports.Published(source=p.source, split="test", protocol=p.protocol, metrics=p.metrics)
                for p in spec.published
            ],
            links=links_to(run),
            notes=_notes(inputs),
        )
        paths = reports.write_report(report, folder)
        log_report(run, paths)
        metrics = {
            f"{s.split}/{s.protocol}/{s.model}/{name}": value
            for s in report.scores
            for name, value in s.metrics.items()
        }
        values = {
            f"test {s.model} {s.protocol} {name}": s.metrics[name]
            for s in report.scores
            if s.split == "test"
            for name in ("HR@10", "NDCG@10")
        }
        return Outcome(
            values,
            {"plot": image(paths.plots["metrics"], "HR@10 and NDCG@10"), "tables": reports.markdown_tables(report)},
            metrics,
            files={"report": paths.html.name},
        )

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=RANKING_VERSION,
        settings={
            "title": spec.title,
            "published": [p.model_dump() for p in spec.published],
            "top_n": TOP_N,
            "seeds": _seeds(inputs),
        },
        inputs={**inputs, "encoder": inputs["raserec_pretrained"].fingerprint},
        force=config.force,
        build=build,
    )
    return result


def _seeds(inputs: dict[str, Artifact]) -> dict[str, int]:
    stages = {PRETRAINED: "raserec_pretrained", FINETUNED: "raserec_finetuned"}
    return {model: int(inputs[stage].manifest.config["seed"]) for model, stage in stages.items()}


def _notes(inputs: dict[str, Artifact]) -> list[str]:
    bank = inputs["memory_bank"].metadata["values"]
    cut = "only memories known at the query's time" if bank["time_cut"] else "memories of other users from any time"
    return [
        f"Memory bank: {bank['index']} index, recall@20 {bank['recall_at_20']:.4f} against exact search; {cut}; of the "
        "query's own user only earlier ones.",
        "Validation pairs join the memory bank before the test split is scored, as in the paper.",
        "Baselines learn from the training parts alone, for the test split, too. popularity: training interactions of "
        "an item. item-KNN: sum of an item's cosines with those of the history that have it among their "
        f"{inputs['ranking_baselines'].manifest.config['neighbours']} most similar.",
    ]


def _curve(model: str, history: Path) -> reports.RankingCurve:
    return reports.RankingCurve(model=model, protocol="unmasked", **course(history, ("HR@10", "NDCG@10")))


def course(history: Path, figures: Sequence[str]) -> dict[str, Any]:
    """``epochs`` and ``best_epoch`` of a training curve, from what `rarec.training.fit` wrote.

    ``figures`` names the validation figures to show.
    """
    summary = json.loads(history.read_text())
    epochs = tuple(
        Epoch(epoch=int(record["epoch"]), loss=record["loss"], validation={name: record[name] for name in figures})
        for record in summary["history"]
    )
    return {"epochs": epochs, "best_epoch": epochs[summary["best_epoch"]].epoch}


def log_report(run: TrackedRun, paths: ReportPaths) -> None:
    """Log a report's files to its MLflow run."""
    run.log_file(paths.html)
    run.log_file(paths.json)
    for plot in paths.plots.values():
        run.log_file(plot, "plots")


def links_to(run: TrackedRun) -> list[Link]:
    """The page of the MLflow run, if there is a server that has one."""
    return [Link(label="MLflow run", url=run.url)] if run.url.startswith("http") else []


def image(png: Path, what: str) -> str:
    """Markdown that shows a picture inside Dagster's metadata, small enough for its dialog."""
    small = io.BytesIO()
    with Image.open(png) as picture:
        picture.thumbnail((900, 900))
        picture.save(small, "PNG")
    return f"![{what}](data:image/png;base64,{base64.b64encode(small.getvalue()).decode()})"
