"""`python -m benchmarks.rules`: how often the rules of drift and promotion err, in simulated worlds.

Both decide on figures of few users; here the truth is known. A user's chance of a hit among the first ten is drawn from
a Beta distribution of mean .16, a hit's rank is any of the ten, and NDCG@10 so about .08, as on MovieLens-100K.
"""

import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from rarec.types import Float64Array, IntArray

if TYPE_CHECKING:
    from benchmarks.measure import Figures

RESULTS = Path(__file__).parent / "results"
SPREAD = (0.4, 2.1)  # of the Beta distribution
PROMOTION_EVENTS = 5000
EVENTS_A_USER = 5
FALLS = (0.0, 0.15, 0.3, 0.5)
WORSE = (0.0, 0.05, 0.1, 0.2)
ALIKE = 0.5  # share of events on which two trainings of a model give the same rank
ABOUT = {
    "drift": "In how many simulated weeks `drift_report` asks for fine-tuning or pre-training (finetune_drop 15 %, "
    "pretrain_drop 40 %), when the champion truly fell by so much of its NDCG@10. *bare*: if only the figures were "
    f"compared. The promotion saw {PROMOTION_EVENTS:,} events; a user has {EVENTS_A_USER}.",
    "promotion": "How many simulated candidates pass that are truly worse by so much of the champion's NDCG@10. Each "
    f"user has one event, and both models give the same rank at {ALIKE:.0%} of the events. First with the defaults "
    "(tolerance 1 %), then `strict` with a tolerance of 5 %.",
}


def world(rng: np.random.Generator, users: IntArray, fall: float) -> Float64Array:
    """(E,) ranks of events of these users, whose chances of a hit are less by this share."""
    hit = rng.random(len(users)) < (1 - fall) * rng.beta(*SPREAD, size=len(users))[users]
    return np.where(hit, rng.integers(1, 11, len(users)), np.inf)


def drift(draws: int, sizes: tuple[int, ...] = (100, 300, 1000, 5000)) -> "Figures":
    """How often a step is asked for, by the number of new events and the true fall."""
    from rarec.champions.drift import DriftRule
    from rarec.champions.window import CHOICE, Window

    rng, rule = np.random.default_rng(1), DriftRule()

    def lived(events: int, fall: float) -> tuple[dict[str, float], int]:
        users = np.sort(rng.integers(max(2, events // EVENTS_A_USER), size=events))
        return Window(np.arange(events), users).figures(world(rng, users, fall)), len(np.unique(users))

    calm = {"unknown_items": 0.0, "item_shift": 0.0}
    figures: Figures = {}
    for events in sizes:
        column = figures.setdefault(f"{events:,} events", {})
        for fall in FALLS:
            asked, bare = 0, 0
            for _ in range(draws):
                (before, then_users), (now, users) = lived(PROMOTION_EVENTS, 0.0), lived(events, fall)
                verdict, _ = rule.judge(events, events, 0, before, now | calm, (then_users, users))
                asked += verdict in ("finetune", "pretrain")
                bare += now[CHOICE] <= (1 - rule.finetune_drop) * before[CHOICE]
            column[f"fell by {fall:.0%}"] = f"{asked / draws:.1%} (bare {bare / draws:.1%})"
    return figures


def promotion(draws: int, sizes: tuple[int, ...] = (30, 100, 1000, 6000)) -> "Figures":
    """How often a candidate passes, by the number of users and how much worse it truly is."""
    from rarec.champions.promotion import PASSES, Rule
    from rarec.champions.window import Window

    rng, rules = np.random.default_rng(1), (Rule(), Rule(tolerance=0.05, strict=True))
    figures: Figures = {}
    for n in sizes:
        column = figures.setdefault(f"{n:,} users", {})
        users = np.arange(n)
        for worse in WORSE:
            passed = [0, 0]
            for _ in range(draws):
                champion, other = world(rng, users, 0.0), world(rng, users, 0.0)
                candidate = np.where(rng.random(n) < ALIKE, champion, other)
                candidate[rng.random(n) < worse] = np.inf
                compared = Window(users, users).compare(champion, candidate)
                for which, rule in enumerate(rules):
                    passed[which] += rule.decide(compared)[0] in PASSES
            lenient, strict = (f"{count / draws:.0%}" for count in passed)
            column[f"worse by {worse:.0%}"] = f"{lenient} (strict {strict})"
    return figures


def main(
    draws: Annotated[int, typer.Option(min=1, help="Simulated weeks, and candidates, of each kind.")] = 1000,
    record: Annotated[bool, typer.Option("--record", help="Write benchmarks/results/rules.*.")] = False,
) -> None:
    """Simulate, and print how often the rules err."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy's and PyTorch's libraries start their threads
    from benchmarks import report
    from benchmarks.measure import machine

    results = {"drift": drift(draws), "promotion": promotion(draws)}
    for name, figures in results.items():
        print(f"\n{name}: {ABOUT[name]}\n{report.table(figures)}", flush=True)
    if record:
        command = shlex.join(["python", "-m", "benchmarks.rules", "--draws", str(draws), "--record"])
        measured = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        report.write(RESULTS / "rules", results, command, machine(1), measured, {"draws": draws}, about=ABOUT)


if __name__ == "__main__":
    typer.run(main)
