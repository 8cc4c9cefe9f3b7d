"""Group `baselines`: what the models are set against."""

from pathlib import Path

import dagster as dg
import pandas as pd
import torch

from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, resolve, takes, upstream
from rarec.baselines.ranking import ITEM_KNN, POPULARITY, ItemNeighbours, RankingBaselineSettings, rank_by_popularity
from rarec.config import Settings
from rarec.data.sequences import Split, UserSequences
from rarec.metrics.ranking import RankingResult, ranking_table
from rarec.reports.records import Split as ShownSplit
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

RANKING_BASELINES_VERSION = "1"
RANKS = "ranks.parquet"
SPLITS: dict[Split, ShownSplit] = {"valid": "validation", "test": "test"}  # as data and reports name them


@takes(RankingBaselineSettings)
class RankingBaselineConfig(StageConfig):
    """Run configuration of `ranking_baselines`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"ranking_baselines": RankingBaselineSettings}


@dg.asset(
    deps=["user_sequences"],
    group_name="baselines",
    kinds={"scipy"},
    owners=[OWNER],
    code_version=RANKING_BASELINES_VERSION,
)
@refuse_bad_input
def ranking_baselines(
    context: dg.AssetExecutionContext,
    config: RankingBaselineConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Ranks of the validation and test targets by popularity and by item-KNN: what both stages have to beat.

    Both learn from the training parts alone, and are ranked as the models are.
    """
    settings = resolve(RankingBaselineSettings, config, folders.spec(context.partition_key), "ranking_baselines")
    inputs = upstream(context, store, "user_sequences")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        sequences = UserSequences.load(inputs["user_sequences"].path)
        neighbours = ItemNeighbours.of(sequences, settings.neighbours)
        tables: list[pd.DataFrame] = []
        metrics: dict[str, float] = {}
        for split, name in SPLITS.items():
            prefixes = sequences.prefixes(split)
            for model, result in (
                (POPULARITY, rank_by_popularity(sequences, prefixes)),
                (ITEM_KNN, neighbours.rank(sequences, prefixes)),
            ):
                ranks = {"unmasked": result.rank.numpy(), "masked": result.rank_masked.numpy()}
                tables.append(pd.DataFrame({"split": split, "model": model, **ranks}))
                metrics |= {
                    f"{name}/{protocol}/{model}/{figure}": value
                    for protocol, rank in ranks.items()
                    for figure, value in ranking_table(rank).items()
                }
        pd.concat(tables).to_parquet(folder / RANKS, index=False)
        values = {
            f"test {model} {protocol} {figure}": metrics[f"test/{protocol}/{model}/{figure}"]
            for model in (POPULARITY, ITEM_KNN)
            for protocol in ("unmasked", "masked")
            for figure in ("HR@10", "NDCG@10")
        }
        return Outcome({"pairs of neighbours": int(neighbours.similarity.nnz), **values}, metrics=metrics)

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=RANKING_BASELINES_VERSION,
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


def baseline_rankings(artifact: Artifact, split: Split) -> dict[str, RankingResult]:
    """Model to ranks of the split's targets, in the order of the users; without lists."""
    ranks = pd.read_parquet(artifact.file(RANKS))
    return {
        str(model): RankingResult(
            torch.from_numpy(own["unmasked"].to_numpy(copy=True)), torch.from_numpy(own["masked"].to_numpy(copy=True))
        )
        for model, own in ranks[ranks["split"] == split].groupby("model", sort=False)
    }
