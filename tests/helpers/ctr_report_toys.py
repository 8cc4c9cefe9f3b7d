"""A small report of the ReLLa track."""

import math

import numpy as np

from rarec.reports.ctr.report import (
    CtrOutcome,
    Epoch,
    Heterogeneity,
    Link,
    PromptPreview,
    SeedRun,
    Similarity,
    TrainingCurve,
    build_ctr_report,
)

YARDSTICK, RECENT, MIXED = "five numbers", "tuned on recent", "tuned on mixed"


SIZES = {"valid": 300, "test": 400}


def make_data(seed=0):
    rng = np.random.default_rng(seed)
    signal = {split: rng.normal(0, 1.5, n) for split, n in SIZES.items()}
    return signal, {
        "labels": {split: rng.random(len(s)) < 1 / (1 + np.exp(-s)) for split, s in signal.items()},
        "users": {split: rng.integers(0, 40, n) for split, n in SIZES.items()},
        "history_length": {split: rng.integers(5, 30, n) for split, n in SIZES.items()},
        "target_count": {split: np.maximum(rng.integers(-3, 50, n), 0) for split, n in SIZES.items()},
    }


def make_outcomes(models=(YARDSTICK, RECENT, MIXED), splits=("valid", "test"), seed=1):
    signal, _ = make_data()
    rng = np.random.default_rng(seed)
    return [
        CtrOutcome(model, split, 1 / (1 + np.exp(-signal[split] - rng.normal(0, 1.5 / strength, SIZES[split]))))
        for strength, model in enumerate(models, start=1)
        for split in splits
    ]


def make_report(outcomes=None, **changes):
    arguments = make_data()[1] | {
        "dataset": "toy",
        "data_version": "v1",
        "seeds": {RECENT: 42, MIXED: 43},
        "split_rule": "by time",
        "yardstick": YARDSTICK,
        "comparisons": [(RECENT, MIXED)],
        "heterogeneity": [
            Heterogeneity(history=history, k=k, distinct_genres=k / part)
            for part, history in enumerate(("recent", "retrieved"), start=2)
            for k in (10, 5)
        ],
        "similarity": [Similarity(history="random", cosine=0.125)],
        "seed_runs": [
            SeedRun(mode="mixed", seed=42, history="retrieved", model=MIXED),
            SeedRun(mode="mixed", seed=43, history="retrieved", model=RECENT),
            SeedRun(mode="recent", seed=42, history="recent", model=RECENT),
        ],
        "curves": [TrainingCurve(model=MIXED, epochs=(Epoch(epoch=1, loss=math.nan, validation={"AUC": 0.7}),))],
        "prompts": [PromptPreview(title="A prompt", text="First line.\nSecond line.")],
        "links": [Link(label="MLflow run", url="http://localhost:5000/run")],
        "notes": ["A remark."],
        "resamples": 50,
    }
    return build_ctr_report(make_outcomes() if outcomes is None else outcomes, **(arguments | changes))
