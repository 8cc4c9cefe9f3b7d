"""Group `reports`: figures of the RaSeRec track, as JSON, as a page, in Dagster and in MLflow."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assets.baselines.ranking import SPLITS, rank_table, rankings_in, save_ranks
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from assets.raserec.controls import control_modules
from assets.raserec.finetuned import MODEL, load_recommender
from assets.reports.publish import course, effort, image, links_to, log_report
from rarec.baselines.transitions import CHOSEN_BY
from rarec.config import Settings
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.raserec.retrieval_module import load_module
from rarec.raserec.settings import Control
from rarec.reports.ranking import report as reports
from rarec.reports.records import SPLIT_NAMES
from rarec.training.engine import worker_device
from rarec.training.fit import HISTORY
from resources.artifacts.store import Artifact

TOP_N = 50
PRETRAINED, FINETUNED = "pre-trained", "fine-tuned"
STAGES = {PRETRAINED: "raserec_pretrained", FINETUNED: "raserec_finetuned"}
CONTROLS: dict[Control, str] = {"random": f"{FINETUNED}, random memories", "itself": f"{FINETUNED}, itself as memories"}
FORGETFUL = f"{FINETUNED}, no validation pairs"


def _config(request: Request[Settings]) -> dict[str, Any]:
    return {
        "title": request.spec.title,
        "published": [p.model_dump() for p in request.spec.published],
        "top_n": TOP_N,
        "seeds": _seeds(request.inputs),
    }


@stage(
    group="reports",
    track="raserec",
    version="7",
    inputs=(*MODEL, "raserec_controls", "ranking_baselines"),
    fingerprints={"encoder": "raserec_pretrained"},
    kinds={"json", "html"},
    config=_config,
    read_weekly=True,
)
def ranking_metrics(job: Job[Settings]) -> Outcome:
    """HR, NDCG and MRR of both stages and the baselines by full ranking, masked and unmasked, with groups and
    significance.

    These figures are not used for model selection. But if few events came after the training, `raserec_candidate` uses
    the same test targets to decide on promotion.
    """
    sequences, recommender = load_recommender(job.inputs)
    for name in (*MODEL[1:], "raserec_controls", "ranking_baselines"):  # so that runs compare by them
        job.run.log_params({name: job.inputs[name].manifest.config})
    encoder, folders = job.inputs["raserec_pretrained"], control_modules(job.inputs["raserec_controls"])
    controls = {
        CONTROLS[control]: load_module(folder, encoder.fingerprint).to(worker_device())
        for control, folder in folders.items()
    }
    outcomes = []
    for split in SPLITS:
        prefixes = sequences.prefixes(split)
        targets = torch.from_numpy(sequences.next_items(prefixes))
        rankings = rankings_in(job.inputs["ranking_baselines"], split)
        encoded, queries = recommender.encoded(sequences, prefixes)
        vectors = {PRETRAINED: encoded}
        if split == "test":
            vectors[FORGETFUL] = recommender.augmented(encoded, queries)
            recommender.remember(sequences, sequences.prefixes("valid"))
        vectors[FINETUNED] = recommender.augmented(encoded, queries)
        for control, module in controls.items():
            vectors[control] = replace(recommender, module=module).augmented(encoded, queries)
        for model in (PRETRAINED, FINETUNED, *controls, FORGETFUL):
            if model in vectors:
                rankings[model] = recommender.rank(vectors[model], sequences, prefixes, TOP_N)
        outcomes += [reports.RankingOutcome(model, split, targets, ranking) for model, ranking in rankings.items()]
    users = sequences.evaluated_users()
    report = reports.build_report(
        outcomes,
        dataset=job.spec.title,
        data_version=job.inputs["user_sequences"].data_version,
        seeds=_seeds(job.inputs),
        split_rule="Leave one out: a user's last item is the test target, the one before it the validation target.",
        training_counts=sequences.train_counts(),
        training_lengths=(sequences.train_ends - sequences.offsets[:-1])[users],
        comparisons=(
            (best_of(rankings_in(job.inputs["ranking_baselines"], "valid")), FINETUNED),
            (PRETRAINED, FINETUNED),
        ),
        controls=(
            *((PRETRAINED, one) for one in (FINETUNED, *controls)),
            *((one, FINETUNED) for one in (*controls, FORGETFUL)),
        ),
        curves=[_curve(model, job.inputs[trained].file(HISTORY)) for model, trained in STAGES.items()],
        published=[
            reports.Published(source=p.source, split="test", protocol=p.protocol, metrics=p.metrics)
            for p in job.spec.published
        ],
        efforts=[
            effort(model, job.inputs[trained].metadata["values"], job.inputs[trained].file(HISTORY), CHOSEN_BY)
            for model, trained in STAGES.items()
        ],
        links=links_to(job.run),
        notes=_notes(job.inputs),
    )
    save_ranks((rank_table(one.split, one.model, one.ranking) for one in outcomes), job.folder)
    metrics = {
        f"{SPLIT_NAMES[s.split]}/{s.protocol}/{s.model}/{name}": value
        for s in report.scores
        for name, value in s.metrics.items()
    }
    values = {
        f"test {s.model} {s.protocol} {name}": s.metrics[name]
        for s in report.scores
        if s.split == "test"
        for name in ("HR@10", "NDCG@10")
    }
    return publish(job, report, values, metrics)


def publish(
    job: Job[Settings],
    report: reports.RankingReport,
    values: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Outcome:
    """Write the report, log it, and show its plot and its tables."""
    paths = reports.write_report(report, job.folder)
    log_report(job.run, paths)
    return Outcome(
        dict(values or {}),
        {"plot": image(paths.plots["metrics"], "HR@10 and NDCG@10"), "tables": reports.markdown_tables(report)},
        dict(metrics or {}),
        files={"report": paths.html.name},
    )


def best_of(rankings: Mapping[str, RankingResult]) -> str:
    """The model that ranks the validation targets best."""
    return max(rankings, key=lambda model: ranking_table(rankings[model].rank)[CHOSEN_BY])


def _seeds(inputs: Mapping[str, Artifact]) -> dict[str, int]:
    return {model: int(inputs[trained].manifest.config["seed"]) for model, trained in STAGES.items()}


def _notes(inputs: Mapping[str, Artifact]) -> list[str]:
    bank = inputs["memory_bank"].metadata["values"]
    near = inputs["ranking_baselines"].manifest.config["neighbours"]
    cut = "only memories known at the query's time" if bank["time_cut"] else "memories of other users from any time"
    return [
        f"Memory bank: {bank['index']} index, recall@20 {bank['recall_at_20']:.4f} against exact search; {cut}; of the "
        "query's own user only earlier ones.",
        "The time of stage 2 comes on top of that of stage 1.",
        "Validation pairs join the memory bank before the test split is scored, as in the paper; where it says no "
        "validation pairs, they do not. Random memories and itself as memories: stage 2 trained again with memories "
        "drawn at random, or with the query in the place of every memory.",
        "For the test split, the simple methods know the validation items, too; their settings are chosen on "
        "validation. popularity: interactions of an item. item-KNN: sum of an item's cosines with those of "
        f"the history that have it among their {near} most similar. "
        "EASE: a linear model in closed form. sequential ridge: one of the next item, from a short and a long memory "
        "of the history. transitions: what came after the latest items of the history, near "
        "ones counting more; with text, also items whose titles and attributes are similar.",
    ]


def _curve(model: str, history: Path) -> reports.RankingCurve:
    return reports.RankingCurve(model=model, protocol="unmasked", **course(history, ("HR@10", "NDCG@10")))
