"""Group `peers`: models of other libraries on our splits, and the report that sets them beside ours."""

import shutil

import torch

from assets.baselines.ranking import SPLITS, Ranks, rankings_in, save_ranks
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.peers.process import require_peers, run_peer, versions_of
from assets.reports.publish import load_efforts, save_efforts
from assets.reports.ranking import FINETUNED, best_of, publish
from rarec.baselines.peers import PEERS, PeerLists, PeerRankingSettings, save_sequences
from rarec.config import Settings
from rarec.data.sequences import UserSequences
from rarec.reports.ranking import report as reports
from rarec.reports.records import Effort

SCRIPT = "rankings.py"
TOP_N = 50


@stage(
    group="peers",
    track="raserec",
    version="1",
    settings=PeerRankingSettings,
    shown=("models", "factors", "epochs"),
    inputs=("user_sequences",),
    kinds={"pytorch", "pytorchlightning"},
    trains=True,
    precision=False,
    prepare=require_peers,
    extras=lambda _: versions_of(SCRIPT),
)
def peer_rankings(job: Job[PeerRankingSettings]) -> Outcome:
    """RecTools' SASRec, eSASRec and BERT4Rec, trained on our training parts in their own environment (`make peers`).

    They give lists of the best items, and our metrics judge them. Validation chooses the epoch, as for our models.
    """
    sequences = UserSequences.load(job.path("user_sequences"))
    exchange = job.folder / "exchange"
    exchange.mkdir()
    save_sequences(sequences, exchange)
    ranks, efforts = Ranks(), []
    for model in job.settings.models:
        tried = []
        for dropout in job.settings.dropouts:
            given = {**job.settings.job(model, dropout), "exchange": str(exchange), "top_n": TOP_N}
            tried.append(PeerLists.load(run_peer(job, SCRIPT, given, f"{model}-{dropout:g}")))
        best = max(tried, key=lambda one: max(one.training["validation"]))
        efforts.append(Effort(model=PEERS[model], **best.training))
        for split in SPLITS:
            ranks.add(split, PEERS[model], best.ranking(split, sequences))
    save_ranks(ranks.tables, job.folder)
    save_efforts(efforts, job.folder)
    shutil.rmtree(exchange)
    return Outcome(dict(ranks.values), metrics=ranks.metrics)


@stage(
    group="peers",
    track="raserec",
    version="1",
    inputs=("user_sequences", "ranking_baselines", "ranking_metrics", "peer_rankings"),
    kinds={"json", "html"},
)
def peer_metrics(job: Job[Settings]) -> Outcome:
    """Our models, the simple methods and the peers in one report: quality, training time and memory side by side."""
    sequences = UserSequences.load(job.path("user_sequences"))
    ours = reports.RankingReport.model_validate_json(job.inputs["ranking_metrics"].file("report.json").read_text())
    outcomes = []
    for split in SPLITS:
        targets = torch.from_numpy(sequences.next_items(sequences.prefixes(split)))
        for name in ("ranking_metrics", "peer_rankings"):
            models = rankings_in(job.inputs[name], split)
            outcomes += [reports.RankingOutcome(model, split, targets, ranking) for model, ranking in models.items()]
    users = sequences.evaluated_users()
    simple, peers = (rankings_in(job.inputs[name], "valid") for name in ("ranking_baselines", "peer_rankings"))
    report = reports.build_report(
        outcomes,
        dataset=ours.dataset,
        data_version=ours.data_version,
        seeds=ours.seeds,
        split_rule=ours.split_rule,
        training_counts=sequences.train_counts(),
        training_lengths=(sequences.train_ends - sequences.offsets[:-1])[users],
        comparisons=[(model, FINETUNED) for model in dict.fromkeys([best_of({**simple, **peers}), *peers])],
        published=ours.published,
        efforts=[*ours.efforts, *load_efforts(job.inputs["peer_rankings"])],
        notes=[
            *ours.notes,
            "RecTools trains on the training parts, and reads the validation item only as the end of the test "
            f"histories; a peer's rank is its target's place in its list of the best {TOP_N}, or last. The first "
            "comparison is with the best on validation of the peers and the simple methods.",
        ],
    )
    return publish(job, report)
