"""Group `peers`: models of other libraries on our splits, and the report that sets them beside ours."""

import json
import shutil

import pandas as pd
import torch

from assets.baselines.ranking import RANKS, SPLITS, rankings_in
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.peers.process import require_peers, run_peer
from assets.reports.publish import image, log_report
from assets.reports.ranking import FINETUNED
from rarec.baselines.peers import PEERS, PeerLists, PeerRankingSettings, save_sequences
from rarec.config import Settings
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import ranking_table
from rarec.reports.ranking import report as reports
from rarec.reports.records import SPLIT_NAMES, Effort

COSTS = "costs.json"
TOP_N = 50


@stage(
    group="peers",
    track="raserec",
    version="1",
    settings=PeerRankingSettings,
    inputs=("user_sequences",),
    kinds={"pytorch", "pytorchlightning"},
    computes=True,
    prepare=require_peers,
)
def peer_rankings(job: Job[PeerRankingSettings]) -> Outcome:
    """RecTools' SASRec, eSASRec and BERT4Rec, trained on our training parts in their own environment (`make peers`).

    They give lists of the best items, and our metrics judge them. Validation chooses the epoch, as for our models.
    """
    sequences = UserSequences.load(job.path("user_sequences"))
    exchange = job.folder / "exchange"
    exchange.mkdir()
    save_sequences(sequences, exchange)
    tables, costs = [], []
    metrics: dict[str, float] = {}
    values: dict[str, float] = {}
    for model in job.settings.models:
        output = job.folder / model
        run_peer(job, "rankings.py", job.settings.job(model, exchange, output, TOP_N), output)
        found, name = PeerLists.load(output), PEERS[model]
        costs.append({"model": name, **found.training})
        for split in SPLITS:
            targets = sequences.next_items(sequences.prefixes(split))
            ranking = found.ranking(split, targets, sequences.n_items)
            ranks = {"unmasked": ranking.rank.numpy(), "masked": ranking.rank_masked.numpy()}
            tables.append(pd.DataFrame({"split": split, "model": name, **ranks}))
            for protocol, rank in ranks.items():
                figures = ranking_table(rank)
                metrics |= {f"{SPLIT_NAMES[split]}/{protocol}/{name}/{key}": value for key, value in figures.items()}
                if split == "test":
                    values |= {f"test {name} {protocol} {key}": figures[key] for key in ("HR@10", "NDCG@10")}
    pd.concat(tables).to_parquet(job.folder / RANKS, index=False)
    (job.folder / COSTS).write_text(json.dumps(costs))
    shutil.rmtree(exchange)
    return Outcome(values, metrics=metrics)


@stage(
    group="peers",
    track="raserec",
    version="1",
    inputs=("user_sequences", "ranking_metrics", "peer_rankings"),
    kinds={"json", "html"},
)
def peer_metrics(job: Job[Settings]) -> Outcome:
    """Our models, the simple methods and the peers in one report: quality, training time and memory side by side."""
    sequences = UserSequences.load(job.path("user_sequences"))
    ours = reports.RankingReport.model_validate_json(job.inputs["ranking_metrics"].file("report.json").read_text())
    costs = json.loads(job.inputs["peer_rankings"].file(COSTS).read_text())
    outcomes = []
    for split in SPLITS:
        targets = torch.from_numpy(sequences.next_items(sequences.prefixes(split)))
        for name in ("ranking_metrics", "peer_rankings"):
            models = rankings_in(job.inputs[name], split)
            outcomes += [reports.RankingOutcome(model, split, targets, ranking) for model, ranking in models.items()]
    users = sequences.evaluated_users()
    report = reports.build_report(
        outcomes,
        dataset=ours.dataset,
        data_version=ours.data_version,
        seeds=ours.seeds,
        split_rule=ours.split_rule,
        training_counts=sequences.train_counts(),
        training_lengths=(sequences.train_ends - sequences.offsets[:-1])[users],
        comparisons=[(cost["model"], FINETUNED) for cost in costs],
        published=ours.published,
        efforts=[
            *ours.efforts,
            *(
                Effort(
                    model=cost["model"],
                    epochs=len(cost["history"]),
                    best_epoch=cost["best_epoch"],
                    seconds=cost["seconds"],
                    peak_memory_mib=cost["peak_memory_mib"],
                )
                for cost in costs
            ),
        ],
        notes=[
            *ours.notes,
            "RecTools trains on the same training parts; a peer's rank is its target's place in its list of the best "
            f"{TOP_N}, or last.",
        ],
    )
    paths = reports.write_report(report, job.folder)
    log_report(job.run, paths)
    return Outcome(
        {},
        {"plot": image(paths.plots["metrics"], "HR@10 and NDCG@10"), "tables": reports.markdown_tables(report)},
        files={"report": paths.html.name},
    )
