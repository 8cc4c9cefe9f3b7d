"""Group `peers`: click models of other libraries on our samples, and the report that sets them beside ours."""

import json
import shutil

import numpy as np
import pandas as pd

from assets.baselines.ctr import SPLITS, first_shots
from assets.data.clean import load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.peers.process import require_peers, run_peer
from assets.reports.ctr import REPORTED, write_report
from rarec.baselines.ctr import ALL_SAMPLES, SAME_SHOTS
from rarec.baselines.peer_predictions import CTR_PEERS, PROBABILITY, PeerPredictionSettings, save_samples
from rarec.baselines.peers import TRAINING
from rarec.data.ctr import CtrSamples
from rarec.metrics.ctr import METRICS, ctr_metrics
from rarec.reports.ctr.inputs import CtrReportSettings
from rarec.reports.records import SPLIT_NAMES

COSTS = "costs.json"


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=PeerPredictionSettings,
    inputs=("interactions", "item_catalog", "user_profiles", "ctr_samples", "mixed_reit_samples"),
    kinds={"pytorch"},
    computes=True,
    prepare=require_peers,
    extras=lambda request: {
        "label_threshold": request.spec.label_threshold,
        "label_comparison": request.spec.label_comparison,
    },
)
def peer_predictions(job: Job[PeerPredictionSettings]) -> Outcome:
    """torch-rechub's DCNv2 and DIN on all training samples and on the adapters' shots, in their own environment.

    Validation chooses learning rate, weight decay and epoch. Our metrics judge the probabilities.
    """
    samples = CtrSamples.load(job.path("ctr_samples"))
    table = load_table(job.inputs["interactions"], "interactions", ("item_index", "rating"))
    shots = first_shots(job.path("mixed_reit_samples"))[1]
    exchange = job.folder / "exchange"
    exchange.mkdir()
    save_samples(
        samples,
        table["item_index"].to_numpy().astype(np.int64),
        job.spec.is_positive(table["rating"].to_numpy()),
        load_table(job.inputs["item_catalog"], "items"),
        load_table(job.inputs["user_profiles"], "users"),
        shots,
        job.settings.behaviours,
        exchange,
    )
    rows = {split: samples.rows(split) for split in SPLITS}
    found = {split: {"sample": np.arange(own.start, own.stop)} for split, own in rows.items()}
    costs = []
    metrics: dict[str, float] = {}
    everything = len(shots) == samples.rows("train").stop
    for model in job.settings.models:
        for which, amount in (("all", ALL_SAMPLES), ("shots", SAME_SHOTS)):
            if which == "shots" and everything:
                continue
            name, output = f"{CTR_PEERS[model]}, {amount}", job.folder / f"{model}-{which}"
            run_peer(job, "predictions.py", job.settings.job(model, which, exchange, output), output)
            probability = np.load(output / PROBABILITY)
            costs.append({"model": name, **json.loads((output / TRAINING).read_text())})
            for split, part in zip(SPLITS, np.split(probability, [len(found["valid"]["sample"])]), strict=True):
                found[split][name] = part
                figures = ctr_metrics(part, samples.label[rows[split]])
                where = f"{SPLIT_NAMES[split]}/{name}"
                metrics |= {f"{where}/{key}": float(value) for key, value in zip(METRICS, figures, strict=True)}
    for split, columns in found.items():
        pd.DataFrame(columns).to_parquet(job.folder / f"{split}.parquet", index=False)
    (job.folder / COSTS).write_text(json.dumps(costs))
    shutil.rmtree(exchange)
    values = {f"test {one['model']} AUC": round(metrics[f"test/{one['model']}/AUC"], 4) for one in costs}
    return Outcome(values, metrics=metrics)


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=CtrReportSettings,
    inputs=(*REPORTED, "peer_predictions"),
    kinds={"json", "html"},
)
def peer_ctr_metrics(job: Job[CtrReportSettings]) -> Outcome:
    """ReLLa, the simple methods and the peers in one report."""
    return write_report(job)
