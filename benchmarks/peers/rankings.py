"""A model of RecTools on our split, in the environment of the peers: `python rankings.py JOB`.

JOB is a JSON file: ``exchange`` (what `peer_rankings` wrote: sequences.npz), ``output``, ``checkpoint``, ``model``
(sasrec, esasrec or bert4rec), ``settings`` of RecTools' model, ``epochs``, ``patience`` (epochs without a better
validation NDCG@10), ``top_n`` and ``seed``. It imports nothing of RaRec. It writes ``lists.npz`` (best items of the
validation and test queries, with and without items seen before) and ``training.json`` (epochs, the best of them,
seconds, memory, and NDCG@10 of validation after every epoch). After every epoch it leaves a checkpoint, from which a
second call goes on.

A user's last training item is the last input, the validation target only chooses the epoch, and the validation item is
part of the history when the test list is made, as for our models.
"""

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dagster_pipes import PipesContext, open_dagster_pipes
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
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


def last_is_validation(table: pd.DataFrame, users: list[int]) -> np.ndarray:
    """RecTools' mask of validation: the last interaction of each of ``users``."""
    last = table.groupby(Columns.User)[Columns.Datetime].rank(ascending=False, method="first") == 1
    return (last & table[Columns.User].isin(users)).to_numpy()


class BestEpoch(Callback):
    """Measures NDCG@10 of the validation targets after each epoch, keeps the best weights, stops without progress."""

    def __init__(self, name: str, patience: int, seed: int):
        self.name, self.patience, self.seed = name, patience, seed
        self.figures: list[float] = []
        self.best: dict[str, torch.Tensor] = {}
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start, without the time between two attempts."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"figures": self.figures, "best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.figures, self.best = state["figures"], state["best"]
        self.started = time.perf_counter() - state["seconds"]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Keep RecTools from drawing new weights in the place of the checkpoint's."""
        module.is_fitted = trainer.current_epoch > 0

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Draw the same whether the epochs before it belong to this attempt or to another one."""
        seed_everything(
            int(np.random.SeedSequence([self.seed, trainer.current_epoch]).generate_state(1)[0]), verbose=False
        )

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """Measure and decide."""
        module.eval()
        gains = []
        with torch.no_grad():
            items = module.torch_model.item_model.get_all_embeddings()
            extra = len(module.item_extra_tokens)
            for batch in module.data_preparator.get_dataloader_val():
                batch = {name: value.to(module.device) for name, value in batch.items()}
                sessions = module.torch_model.encode_sessions(batch, items)[:, -1, :]
                scores = sessions @ items.T  # (B, I)
                scores[:, :extra] = -torch.inf
                target = batch["y"][:, -1]
                rank = (scores > scores.gather(1, target[:, None])).sum(1) + 1
                gains.append(torch.where(rank <= LISTS, 1 / torch.log2(1 + rank.float()), 0.0))
        module.train()
        self.figures.append(float(torch.cat(gains).mean()))
        best = int(np.argmax(self.figures))
        if best == len(self.figures) - 1:
            self.best = {name: value.clone() for name, value in module.torch_model.state_dict().items()}
        told = (
            f"{self.name}, epoch {len(self.figures)}: validation NDCG@10 {self.figures[-1]:.4f}, {self.seconds:.0f} s"
        )
        PipesContext.get().log.info(told)
        print(told, flush=True)
        if len(self.figures) - 1 - best >= self.patience:
            trainer.should_stop = True


class ResumingTrainer(Trainer):
    """Goes on from the checkpoint in ``folder``, if there is one, and leaves one after every epoch."""

    def __init__(self, folder: Path, **settings: Any):
        kept = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        settings["callbacks"] = [*settings["callbacks"], kept]
        super().__init__(**settings)
        self.checkpoint = folder / "last.ckpt"

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train."""
        super().fit(*args, **kwargs, ckpt_path=self.checkpoint if self.checkpoint.is_file() else None)


def build(job: dict[str, Any], callback: BestEpoch, users: np.ndarray) -> Any:
    """RecTools' model with the job's settings; ``users`` are those with a validation target."""
    kinds = {"sasrec": SASRecModel, "esasrec": SASRecModel, "bert4rec": BERT4RecModel}
    # As its authors: LiGR layers, and padding hidden from attention.
    own = {"transformer_layers_type": LiGRLayers, "use_key_padding_mask": True} if job["model"] == "esasrec" else {}

    def trainer() -> Trainer:
        return ResumingTrainer(
            Path(job["checkpoint"]), max_epochs=job["epochs"], devices=1, deterministic=True, callbacks=[callback],
            enable_progress_bar=False, enable_model_summary=False, logger=False, num_sanity_val_steps=0,
            limit_val_batches=0,
        )  # fmt: skip

    return kinds[job["model"]](
        **job["settings"], **own, epochs=job["epochs"], verbose=0, deterministic=True, get_trainer_func=trainer,
        get_val_mask_func=last_is_validation, get_val_mask_func_kwargs={"users": users.tolist()},
    )  # fmt: skip


def lists(model: Any, dataset: Dataset, users: np.ndarray, top_n: int) -> dict[str, np.ndarray]:
    """(Q, top_n) best items of the users, -1 if there are fewer: of all items, and without those seen before.

    A user of whom RecTools knows no item has none.
    """
    found = {}
    for name, filtered in (("unmasked", False), ("masked", True)):
        table = model.recommend(users, dataset, k=top_n, filter_viewed=filtered, on_unsupported_targets="ignore")
        best = np.full((len(users), top_n), -1, dtype=np.int64)
        row = np.searchsorted(users, table[Columns.User].to_numpy())
        best[row, table[Columns.Rank].to_numpy() - 1] = table[Columns.Item].to_numpy()
        found[name] = best
    return found


def main(file: Path) -> None:
    """Train, choose the epoch on validation, and write the lists."""
    job = json.loads(file.read_text())
    finished = Path(job["checkpoint"]) / "finished"
    if not (finished / "training.json").is_file():
        finished.mkdir(exist_ok=True)
        train(job, finished)
    shutil.copytree(finished, job["output"], dirs_exist_ok=True)


def train(job: dict[str, Any], output: Path) -> None:
    """Write lists and, last, the record."""
    seed_everything(job["seed"], workers=True)
    with np.load(Path(job["exchange"]) / "sequences.npz") as arrays:
        sequences = dict(arrays)
    ends = sequences["train_ends"]  # position behind the last training item; validation and test items follow
    evaluated = sequences["users"]
    behind = ends.copy()
    behind[evaluated] += 1
    known = Dataset.construct(interactions(sequences, behind))
    model = build(job, BestEpoch(job["model"], job["patience"], job["seed"]), evaluated)
    model.fit(known)
    callback = next(one for one in model.fit_trainer.callbacks if isinstance(one, BestEpoch))  # RecTools copies it
    model.lightning_model.torch_model.load_state_dict(callback.best)
    record = {
        "epochs": len(callback.figures), "best_epoch": int(np.argmax(callback.figures)) + 1,
        "validation": callback.figures, "seconds": callback.seconds,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    before = Dataset.construct(interactions(sequences, ends))
    made: dict[str, np.ndarray] = {}
    for split, dataset in (("valid", before), ("test", known)):
        made |= {f"{split}_{name}": best for name, best in lists(model, dataset, evaluated, job["top_n"]).items()}
    np.savez(output / "lists.npz", **made)  # type: ignore[arg-type]
    (output / "training.json").write_text(json.dumps(record))


if __name__ == "__main__":
    with open_dagster_pipes():
        main(Path(sys.argv[1]))
