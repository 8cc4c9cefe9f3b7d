"""Group `baselines`: the simple methods that both stages of RaSeRec have to beat."""

import pandas as pd
import torch

from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from rarec.baselines.ranking import ITEM_KNN, POPULARITY, ItemNeighbours, RankingBaselineSettings, rank_by_popularity
from rarec.data.sequences import UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.reports.records import SPLIT_NAMES
from rarec.types import Split
from resources.artifacts.store import Artifact

RANKS = "ranks.parquet"
SPLITS: tuple[Split, ...] = ("valid", "test")


@stage(
    group="baselines",
    track="raserec",
    version="1",
    settings=RankingBaselineSettings,
    inputs=("user_sequences",),
    kinds={"scipy"},
)
def ranking_baselines(job: Job[RankingBaselineSettings]) -> Outcome:
    """Ranks of the validation and test targets by popularity and by item-KNN: what both stages have to beat.

    Both use only the training parts, and are evaluated like the models.
    """
    sequences = UserSequences.load(job.path("user_sequences"))
    neighbours = ItemNeighbours.of(sequences, job.settings.neighbours)
    tables: list[pd.DataFrame] = []
    metrics: dict[str, float] = {}
    for split in SPLITS:
        prefixes = sequences.prefixes(split)
        for model, result in (
            (POPULARITY, rank_by_popularity(sequences, prefixes)),
            (ITEM_KNN, neighbours.rank(sequences, prefixes)),
        ):
            ranks = {"unmasked": result.rank.numpy(), "masked": result.rank_masked.numpy()}
            tables.append(pd.DataFrame({"split": split, "model": model, **ranks}))
            metrics |= {
                f"{SPLIT_NAMES[split]}/{protocol}/{model}/{figure}": value
                for protocol, rank in ranks.items()
                for figure, value in ranking_table(rank).items()
            }
    pd.concat(tables).to_parquet(job.folder / RANKS, index=False)
    values = {
        f"test {model} {protocol} {figure}": metrics[f"test/{protocol}/{model}/{figure}"]
        for model in (POPULARITY, ITEM_KNN)
        for protocol in ("unmasked", "masked")
        for figure in ("HR@10", "NDCG@10")
    }
    return Outcome({"pairs of neighbours": int(neighbours.similarity.nnz), **values}, metrics=metrics)


def baseline_rankings(artifact: Artifact, split: Split) -> dict[str, RankingResult]:
    """Model to ranks of the split's targets, in the order of the users; without lists."""
    ranks = pd.read_parquet(artifact.file(RANKS))
    return {
        str(model): RankingResult(
            torch.from_numpy(own["unmasked"].to_numpy(copy=True)), torch.from_numpy(own["masked"].to_numpy(copy=True))
        )
        for model, own in ranks[ranks["split"] == split].groupby("model", sort=False)
    }
