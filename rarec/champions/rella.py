"""A tuned model on interactions that came after its tuning, asked as it is served.

Each model has its own catalogue, item vectors, users and wording. So models from different days, with different
language models or prompts, can be asked about the same targets.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from rarec.data.ctr import CtrSamples
from rarec.data.ids import IdLookup
from rarec.data.templates import Template
from rarec.rella.online import OnlineModel
from rarec.training.engine import keep_freed_memory
from rarec.training.job import Place, WorkerJob
from rarec.training.progress import ProgressReporter, ReportProgress, launched_rank, quiet, worker_main
from rarec.types import Float64Array, IntArray

COLUMNS = ["user_index", "user_id", "item_id", "rating"]


def ask_served(
    model: OnlineModel,
    interactions: pd.DataFrame,
    targets: IntArray,
    batch_tokens: int,
    report: ReportProgress = quiet,
) -> Float64Array:
    """(B,) probability that each target is a like, given all that its user did before.

    The probability is NaN for items that the model does not know. Unknown items in a history are left out, and unknown
    users have no profile.

    Args:
        interactions: The clean table, sorted by (user, time).
        targets: (B,) its rows to predict.
    """
    users = interactions["user_index"].to_numpy(np.int64)
    asked = np.flatnonzero(np.isin(users, users[targets]))
    code, ids = pd.factorize(interactions["item_id"].iloc[asked])
    item = np.full(len(users), -1, dtype=np.int64)
    item[asked] = model.item_rows.rows(ids)[code]
    known = item[targets] >= 0
    probability = np.full(len(targets), np.nan)
    if not known.any():
        return probability
    kept = np.flatnonzero(item >= 0)
    _, first, counts = np.unique(users[kept], return_index=True, return_counts=True)
    probability[known] = model.ask(
        model.user_rows.rows(interactions["user_id"].iloc[kept[first]]),
        item[kept],
        interactions["rating"].to_numpy()[kept],
        np.concatenate([[0], counts.cumsum()]),
        np.searchsorted(kept, targets[known]),
        batch_tokens,
        report,
    )
    return probability


def unseen_targets(
    samples: CtrSamples, interactions: pd.DataFrame, other: CtrSamples, others: pd.DataFrame
) -> IntArray:
    """Test samples that a model tuned on ``other`` samples has not seen.

    Of ``others``, its interactions at that time, only the targets of its own test split are unseen.

    Args:
        interactions, others: The clean tables that the samples belong to.
    """
    rows = samples.rows("test")
    then = np.delete(np.arange(len(others)), other.position[other.rows("test")])
    now, before = interactions.iloc[samples.position[rows]], others.iloc[then]
    # Ids mean the same on both days; rows do not.
    seen, wanted = np.zeros(len(before), dtype=np.int64), np.zeros(len(now), dtype=np.int64)
    for column in ("user_id", "item_id"):
        code, ids = pd.factorize(now[column])
        code_then, ids_then = pd.factorize(before[column])
        found = IdLookup(pd.Series(ids)).rows(ids_then)[code_then]
        wanted = wanted * len(ids) + code
        seen = np.where((found < 0) | (seen < 0), -1, seen * len(ids) + found)
    return np.arange(rows.start, rows.stop)[~np.isin(wanted, seen)]


class AskJob(WorkerJob):
    """Ask a tuned model about interactions that came after its tuning."""

    name: str = Field(description="What progress and files call the model.")
    model: dict[str, Path] = Field(description="The model's artifact folders; see `OnlineModel.load`.")
    base: str = Field(description="Fingerprint of the language model.")
    template: Template
    behaviours: int = Field(description="Behaviours in a prompt.")
    cache: Path = Field(description="Where models from a hub are kept.")
    interactions: Path = Field(description="Folder of the artifact.")
    targets: Path = Field(description="A .npy file: rows of the interactions that the model is asked about.")
    batch_tokens: int = Field(description="Most tokens of a padded batch of prompts.")


def gather_answers(folder: Path, name: str, targets: IntArray) -> Float64Array:
    """(B,) what the ranks answered, in the order of the targets; their files are removed."""
    files = list(folder.glob(f"{name}-*.parquet"))
    answered = pd.concat([pd.read_parquet(file) for file in files]).set_index("target")["probability"]
    for file in files:
        file.unlink()
    return answered.loc[pd.Index(targets)].to_numpy()


def work(job: AskJob, place: Place, reporter: ProgressReporter) -> None:
    """Worker entry: writes this rank's share as ``<name>-<rank>.parquet``."""
    keep_freed_memory()
    rank, world = launched_rank(), int(os.environ.get("WORLD_SIZE", "1"))
    model = OnlineModel.load(job.model, job.base, job.template, job.behaviours, job.cache)
    table = pd.read_parquet(job.interactions / "interactions.parquet", columns=COLUMNS)
    targets = np.load(job.targets)[rank::world]
    report = partial(reporter.report, stage=job.name)
    probability = ask_served(model, table, targets, job.batch_tokens, report)
    share = pd.DataFrame({"target": targets, "probability": probability})
    share.to_parquet(place.output / f"{job.name}-{rank}.parquet", index=False)


if __name__ == "__main__":
    worker_main(AskJob, work)
