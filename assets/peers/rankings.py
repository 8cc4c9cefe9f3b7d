"""Group `peers`: models of other libraries on our splits, and the report that sets them beside ours."""

import json
import shutil

import torch

from assets.baselines.ranking import SPLITS, Ranks, rankings_in, save_ranks
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.peers.process import COSTS, require_peers, run_peer
from assets.reports.publish import effort
from assets.reports.ranking import FINETUNED, publish
from rarec.baselines.peers import PEERS, PeerLists, PeerRankingSettings, save_sequences
from rarec.config import Settings
from rarec.data.sequences import UserSequences
from rarec.reports.ranking import report as reports

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
    ranks, costs = Ranks(), []
    for model in job.settings.models:
        output = job.folder / model
        run_peer(job, "rankings.py", job.settings.job(model, exchange, output, TOP_N), output)
        found, name = PeerLists.load(output), PEERS[model]
        costs.append({"model": name, **found.training})
        for split in SPLITS:
            targets = sequences.next_items(sequences.prefixes(split))
            ranks.add(split, name, found.ranking(split, targets, sequences.n_items))
    save_ranks(ranks.tables, job.folder)
    (job.folder / COSTS).write_text(json.dumps(costs))
    shutil.rmtree(exchange)
    return Outcome(dict(ranks.values), metrics=ranks.metrics)


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
            *(effort(cost["model"], {**cost, "epochs": len(cost["history"])}) for cost in costs),
        ],
        notes=[
            *ours.notes,
            "RecTools trains on the same training parts; a peer's rank is its target's place in its list of the best "
            f"{TOP_N}, or last.",
        ],
    )
    return publish(job, report)
