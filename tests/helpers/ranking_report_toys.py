"""A small report of the RaSeRec track."""

import math

import numpy as np
import torch

from rarec.metrics.ranking import full_ranking
from rarec.reports.ranking.report import Epoch, Link, Published, RankingCurve, RankingOutcome, build_report

N_USERS, N_ITEMS = 60, 30


def make_outcomes(models=("pre-trained", "fine-tuned"), splits=("valid", "test"), seed=0):
    rng = np.random.default_rng(seed)
    items = torch.tensor(rng.standard_normal((N_ITEMS, 8)), dtype=torch.float32)
    offsets, seen = torch.arange(0, 3 * N_USERS + 1, 3), torch.tensor(rng.integers(0, N_ITEMS, 3 * N_USERS))
    outcomes = []
    for split in splits:
        targets = torch.tensor(rng.integers(0, N_ITEMS, N_USERS))
        targets[0] = -1
        for strength, model in enumerate(models, start=1):
            noise = torch.tensor(rng.standard_normal((N_USERS, 8)), dtype=torch.float32)
            ranking = full_ranking(strength * items[targets] + 3 * noise, items, targets, offsets, seen, top_n=10)
            outcomes.append(RankingOutcome(model, split, targets, ranking))
    return outcomes


def make_report(outcomes=None, **changes):
    arguments = {
        "dataset": "toy",
        "data_version": "v1",
        "seeds": {"pre-trained": 42, "fine-tuned": 42},
        "split_rule": "leave one out",
        "training_counts": np.arange(N_ITEMS),
        "training_lengths": np.full(N_USERS, 3),  # one length only: the groups medium and high are empty
        "comparisons": [("pre-trained", "fine-tuned")],
        "curves": [
            RankingCurve(
                model="pre-trained",
                protocol="unmasked",
                best_epoch=2,
                epochs=(
                    Epoch(epoch=1, loss=3.25, validation={"NDCG@10": 0.1}),
                    Epoch(epoch=2, loss=math.nan, validation={"NDCG@10": 0.2}),
                ),
            )
        ],
        "published": [Published(source="a paper", split="test", protocol="unmasked", metrics={"NDCG@10": 0.1234})],
        "links": [Link(label="MLflow run", url="http://localhost:5000/run")],
        "notes": ["A remark."],
    }
    return build_report(make_outcomes() if outcomes is None else outcomes, **(arguments | changes))
