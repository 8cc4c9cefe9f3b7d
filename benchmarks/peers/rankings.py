"""A model of RecTools on our split, in the environment of the peers: `python rankings.py JOB`.

JOB is a JSON file: ``exchange`` (what `peer_rankings` wrote: sequences.npz), ``output``, ``model`` (sasrec, esasrec or
bert4rec), ``settings`` of RecTools' model, ``epochs``, ``patience`` (epochs without a better validation NDCG@10),
``top_n`` and ``seed``. It imports nothing of RaRec. It writes ``lists.npz`` (best items of the validation and test
queries, with and without items seen before) and ``training.json`` (validation figures and seconds by epoch, memory).

A user's last training item is the last input, the validation target only chooses the epoch, and the validation item is
part of the history when the test list is made, as for our models.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dagster_pipes import PipesContext, open_dagster_pipes
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

LISTS = 10  # of the validation figure


def interactions(sequences: dict[str, np.ndarray], ends: np.ndarray) -> pd.DataFrame:
    """Every user's items up to ``ends`` (U,), in RecTools' columns; the place in the sequence is the time."""
    offsets = sequences["offsets"]
    kept = np.arange(len(sequences["items"])) < np.repeat(ends, np.diff(offsets))
    place = np.arange(len(kept)) - np.repeat(offsets[:-1], np.diff(offsets))
    users = np.repeat(np.arange(len(ends)), np.diff(offsets))
    return pd.DataFrame(
        {
            Columns.User: users[kept],
            Columns.Item: sequences["items"][kept],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(place[kept], unit="s"),
        }
    )


def last_is_validation(table: pd.DataFrame) -> np.ndarray:
    """RecTools' mask of validation: the last interaction of every user who has two."""
    order = table.groupby(Columns.User)[Columns.Datetime]
    return ((order.rank(ascending=False, method="first") == 1) & (order.transform("size") > 1)).to_numpy()


class BestEpoch(Callback):
    """Measures NDCG@10 of the validation targets after each epoch, keeps the best weights, stops without progress."""

    def __init__(self, name: str, patience: int):
        self.name, self.patience = name, patience
        self.history: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """Measure and decide."""
        trained = time.perf_counter() - self.started
        module.eval()
        gains = []
        with torch.no_grad():
            items = module.torch_model.item_model.get_all_embeddings()
            extra = len(module.item_extra_tokens)
            for batch in module.data_preparator.get_dataloader_val():
                sessions = module.torch_model.encode_sessions(batch, items)[:, -1, :]
                scores = sessions @ items.T  # (B, I)
                scores[:, :extra] = -torch.inf
                target = batch["y"][:, -1]
                rank = (scores > scores.gather(1, target[:, None])).sum(1) + 1
                gains.append(torch.where(rank <= LISTS, 1 / torch.log2(1 + rank.float()), 0.0))
        module.train()
        figure = float(torch.cat(gains).mean())
        self.history.append({"epoch": len(self.history), "NDCG@10": figure, "seconds": trained})
        figures = [one["NDCG@10"] for one in self.history]
        best = int(np.argmax(figures))
        if best == len(figures) - 1:
            self.best = {name: value.clone() for name, value in module.torch_model.state_dict().items()}
        told = f"{self.name}, epoch {len(figures)}: validation NDCG@10 {figure:.4f}, {trained:.0f} s"
        PipesContext.get().log.info(told)
        print(told, flush=True)
        if len(figures) - 1 - best >= self.patience:
            trainer.should_stop = True


def build(job: dict[str, Any], callback: BestEpoch) -> Any:
    """RecTools' model with the job's settings."""
    kinds = {"sasrec": SASRecModel, "esasrec": SASRecModel, "bert4rec": BERT4RecModel}
    layers = {"transformer_layers_type": LiGRLayers} if job["model"] == "esasrec" else {}

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=job["epochs"], accelerator="cpu", devices=1, deterministic=True, callbacks=[callback],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=False,
            num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip

    return kinds[job["model"]](
        **job["settings"], **layers, epochs=job["epochs"], verbose=0, deterministic=True,
        get_val_mask_func=last_is_validation, get_trainer_func=trainer,
    )  # fmt: skip


def lists(model: Any, dataset: Dataset, users: np.ndarray, top_n: int) -> dict[str, np.ndarray]:
    """(Q, top_n) best items of the users, -1 if there are fewer: of all items, and without those seen before."""
    found = {}
    for name, filtered in (("unmasked", False), ("masked", True)):
        table = model.recommend(users=users, dataset=dataset, k=top_n, filter_viewed=filtered)
        best = np.full((len(users), top_n), -1, dtype=np.int64)
        row = np.searchsorted(users, table[Columns.User].to_numpy())
        best[row, table[Columns.Rank].to_numpy() - 1] = table[Columns.Item].to_numpy()
        found[name] = best
    return found


def main(file: Path) -> None:
    """Train, choose the epoch on validation, and write the lists."""
    job = json.loads(file.read_text())
    output = Path(job["output"])
    seed_everything(job["seed"], workers=True)
    with np.load(Path(job["exchange"]) / "sequences.npz") as arrays:
        sequences = dict(arrays)
    ends = sequences["train_ends"]  # position behind the last training item; validation and test items follow
    evaluated = sequences["users"]
    behind = ends.copy()
    behind[evaluated] += 1
    known = Dataset.construct(interactions(sequences, behind))
    started = time.perf_counter()
    model = build(job, BestEpoch(job["model"], job["patience"]))
    model.fit(known)
    callback = next(one for one in model.fit_trainer.callbacks if isinstance(one, BestEpoch))  # RecTools copies it
    model.lightning_model.torch_model.load_state_dict(callback.best)
    seconds = time.perf_counter() - started
    before = Dataset.construct(interactions(sequences, ends))
    made: dict[str, np.ndarray] = {}
    for split, dataset in (("valid", before), ("test", known)):
        made |= {f"{split}_{name}": best for name, best in lists(model, dataset, evaluated, job["top_n"]).items()}
    np.savez(output / "lists.npz", **made)  # type: ignore[arg-type]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = [one["NDCG@10"] for one in callback.history]
    record = {"history": callback.history, "best_epoch": int(np.argmax(figures)), "seconds": seconds}
    (output / "training.json").write_text(json.dumps({**record, "peak_memory_mib": peak}))


if __name__ == "__main__":
    with open_dagster_pipes():
        main(Path(sys.argv[1]))
