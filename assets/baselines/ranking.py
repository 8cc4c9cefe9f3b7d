"""Group `baselines`: the simple methods that both stages of RaSeRec have to beat."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from assets.data.clean import load_table
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.stage import Job, stage
from rarec.baselines.ranking import RankingBaselineSettings
from rarec.baselines.ranking import ranking_baselines as ranking_baselines_of
from rarec.data.catalogue import ITEM_TEXT
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.reports.records import SPLIT_NAMES
from rarec.training.progress import progress_log
from rarec.types import Split
from resources.artifacts.store import Artifact

RANKS = "ranks.parquet"
CHOSEN = "chosen.json"  # model -> setting -> value, for those that were chosen on validation
SPLITS: tuple[Split, ...] = ("valid", "test")


@stage(
    group="baselines",
    track="raserec",
    version="3",
    settings=RankingBaselineSettings,
    inputs=("user_sequences", "item_catalog"),
    kinds={"scipy", "scikitlearn"},
)
def ranking_baselines(job: Job[RankingBaselineSettings]) -> Outcome:
    """Ranks of the validation and test targets by simple methods: what both stages have to beat.

    Popularity, item-KNN, EASE and a sequential ridge if the catalogue is not too large, transitions, and transitions
    with similar texts. Their settings are chosen on validation. For the test split they also know the validation items,
    as the memory does.
    """
    sequences = UserSequences.load(job.path("user_sequences"))
    texts = item_words(load_table(job.inputs["item_catalog"], "items"))
    ranks = Ranks()
    chosen: dict[str, dict[str, float]] = {}
    for baseline in ranking_baselines_of(sequences, texts, job.settings):
        progress_log.info("%s", f"  {baseline.name}" + (f": {baseline.chosen}" if baseline.chosen else ""))
        chosen[baseline.name] = baseline.chosen
        for split, ranking in baseline.rankings.items():
            ranks.add(split, baseline.name, ranking)
    save_ranks(ranks.tables, job.folder)
    (job.folder / CHOSEN).write_text(json.dumps(chosen, indent=1))
    settings = pd.DataFrame(
        [(model, name, value) for model, own in chosen.items() for name, value in own.items()],
        columns=["model", "setting", "chosen on validation"],
    )
    return Outcome(dict(ranks.values), {"settings": markdown_table(settings)}, metrics=ranks.metrics)


class Ranks:
    """Ranks of the targets by split and model as they come in, and their figures."""

    def __init__(self) -> None:
        self.tables: list[pd.DataFrame] = []
        self.metrics: dict[str, float] = {}
        self.values: dict[str, float] = {}

    def add(self, split: Split, model: str, ranking: RankingResult) -> None:
        """Take in the ranks of one model on one split."""
        self.tables.append(rank_table(split, model, ranking))
        for protocol, rank in (("unmasked", ranking.rank), ("masked", ranking.rank_masked)):
            figures = ranking_table(rank)
            where = f"{SPLIT_NAMES[split]}/{protocol}/{model}"
            self.metrics |= {f"{where}/{name}": value for name, value in figures.items()}
            if split == "test":
                self.values |= {f"test {model} {protocol} {name}": figures[name] for name in ("HR@10", "NDCG@10")}


def rank_table(split: Split, model: str, ranking: RankingResult) -> pd.DataFrame:
    """The ranks of one model on one split, as they are kept."""
    ranks = {"unmasked": ranking.rank.numpy(), "masked": ranking.rank_masked.numpy()}
    return pd.DataFrame({"split": split, "model": model, **ranks})


def save_ranks(tables: Iterable[pd.DataFrame], folder: Path) -> None:
    """Write tables of ranks, for `rankings_in`."""
    pd.concat(tables).to_parquet(folder / RANKS, index=False)


def item_words(items: pd.DataFrame) -> list[str] | None:
    """All words that the catalogue has on each item; None if it has none on most of them."""
    unnamed = "item " + items["item_id"].astype("str")  # what an item without a title is called
    columns = [items[name].mask(items[name] == unnamed).fillna("").astype("str") for name in ITEM_TEXT]
    words = [" ".join(row).strip() for row in zip(*columns, strict=True)]
    return words if sum(map(bool, words)) > len(words) / 2 else None


def rankings_in(artifact: Artifact, split: Split) -> dict[str, RankingResult]:
    """Model to ranks of the split's targets, in the order of the users; without lists."""
    ranks = pd.read_parquet(artifact.file(RANKS))
    return {
        str(model): RankingResult(
            torch.from_numpy(own["unmasked"].to_numpy(copy=True)), torch.from_numpy(own["masked"].to_numpy(copy=True))
        )
        for model, own in ranks[ranks["split"] == split].groupby("model", sort=False)
    }
