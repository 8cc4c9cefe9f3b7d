"""A model of torch-rechub on our click samples, in the environment of the peers: `python predictions.py JOB`.

JOB is a JSON file: ``exchange`` (what `peer_predictions` wrote: samples.npz), ``output``, ``checkpoint`` (where what is
finished stays for a second call), ``model`` (dcnv2 or din), ``rows`` (all or shots), ``dim``, ``learning_rates``,
``weight_decays``, ``batch_size``, ``epochs``, ``patience`` (epochs without a better validation AUC) and ``seed``. It
imports nothing of RaRec. Every pair of learning rate and weight decay is tried; validation AUC chooses among them and
the epoch. It writes ``probability.npy`` (validation and test samples, in their order) and ``training.json`` (what the
chosen training took, and its pair).
"""

import json
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dagster_pipes import PipesContext, open_dagster_pipes
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN, DCNv2

CHUNK = 8192  # samples of a forward pass without gradients
HISTORIES = ("history", "liked")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def histories_of(names: tuple[str, ...], items: int, dim: int, pooling: str) -> list[Any]:
    """Histories of items, which share the target item's embeddings; place 0 is empty."""
    shared = {"shared_with": "item", "padding_idx": 0}
    return [SequenceFeature(name, items, dim, pooling=pooling, **shared) for name in names]


def build(job: dict[str, Any], fields: dict[str, int], ratings: int) -> torch.nn.Module:
    """The library's model with the settings of its authors' examples.

    The mean embedding of the behaviours' ratings is a field, too.
    """
    items, dim = fields["item"], job["dim"]
    target = SparseFeature("item", items, dim, padding_idx=0)  # so that an empty place has a vector of zeros
    others = [SparseFeature(name, size, dim) for name, size in fields.items() if name != "item"]
    others.append(SequenceFeature("rating", ratings, dim, pooling="mean", padding_idx=0))
    mlp = {"dims": [256, 128], "dropout": 0.2}
    if job["model"] == "dcnv2":
        return DCNv2([*others, target, *histories_of(HISTORIES, items, dim, "mean")], n_cross_layers=3, mlp_params=mlp)
    again = SparseFeature("target", items, dim, shared_with="item", padding_idx=0)
    return DIN(
        others, histories_of(HISTORIES, items, dim, "concat"), [target, again],
        mlp_params=mlp, attention_mlp_params={"dims": [36]},
    )  # fmt: skip


def predict(model: torch.nn.Module, data: dict[str, torch.Tensor], rows: torch.Tensor) -> np.ndarray:
    """(n,) probabilities of these samples."""
    model.eval()
    with torch.no_grad():
        parts = [model({name: value[part] for name, value in data.items()}) for part in rows.split(CHUNK)]
    return torch.cat(parts).cpu().numpy()


@dataclass(frozen=True)
class Data:
    """The samples: model inputs, labels, sample numbers by split, and how many codes the fields and ratings have."""

    inputs: dict[str, torch.Tensor]
    label: torch.Tensor
    rows: dict[str, torch.Tensor]
    fields: dict[str, int]
    ratings: int

    @classmethod
    def load(cls, job: dict[str, Any]) -> "Data":
        """Read what `peer_predictions` wrote."""
        with np.load(Path(job["exchange"]) / "samples.npz") as given:
            fields = dict(zip(given["names"].tolist(), given["sizes"].tolist(), strict=True))
            inputs = {name: torch.from_numpy(given["fields"][:, place]).long() for place, name in enumerate(fields)}
            inputs |= {name: torch.from_numpy(given[name]).long() for name in (*HISTORIES, "rating")}
            inputs["target"] = inputs["item"]
            bounds, shots = given["splits"], torch.from_numpy(given["shots"])
            rows = {name: torch.arange(bounds[i], bounds[i + 1]) for i, name in enumerate(("train", "valid", "test"))}
            if job["rows"] == "shots":
                rows["train"] = shots
            label = torch.from_numpy(given["label"]).float().to(DEVICE)
            inputs = {name: value.to(DEVICE) for name, value in inputs.items()}
            return cls(inputs, label, rows, fields, int(given["ratings"]))


@dataclass
class Trial:
    """A training: validation AUC after each epoch, and of the best one the probabilities of validation and test."""

    chosen: dict[str, float]
    validation: list[float]
    probability: np.ndarray
    seconds: float


def train(job: dict[str, Any], data: Data, rate: float, decay: float) -> Trial:
    """Train until ``patience`` epochs bring no better validation AUC."""
    torch.manual_seed(job["seed"])
    model = build(job, data.fields, data.ratings).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    trial = Trial({"learning_rate": rate, "weight_decay": decay}, [], np.empty(0), 0.0)
    started, train, labels = time.perf_counter(), data.rows["train"], data.label[data.rows["valid"]].cpu().numpy()
    for epoch in range(job["epochs"]):
        model.train()
        for part in train[torch.randperm(len(train))].split(job["batch_size"]):
            if len(part) < 2:  # batch normalisation needs two
                continue
            optimizer.zero_grad()
            answer = model({name: value[part] for name, value in data.inputs.items()})
            torch.nn.functional.binary_cross_entropy(answer, data.label[part]).backward()
            optimizer.step()
        answers = predict(model, data.inputs, data.rows["valid"])
        trial.validation.append(float(roc_auc_score(labels, answers)))
        told = f"{job['model']}, {job['rows']}, {trial.chosen}, epoch {epoch + 1}: AUC {trial.validation[-1]:.4f}"
        PipesContext.get().log.info(told)
        print(told, flush=True)
        best = int(np.argmax(trial.validation))
        if best == epoch:
            trial.probability = np.concatenate([answers, predict(model, data.inputs, data.rows["test"])])
        elif epoch - best >= job["patience"]:
            break
    trial.seconds = time.perf_counter() - started
    return trial


def main(file: Path) -> None:
    """Search, choose on validation, and write the probabilities."""
    job = json.loads(file.read_text())
    finished = Path(job["checkpoint"]) / "finished"
    if not (finished / "training.json").is_file():
        finished.mkdir(exist_ok=True)
        data = Data.load(job)
        tried = [train(job, data, *pair) for pair in product(job["learning_rates"], job["weight_decays"])]
        best = max(tried, key=lambda one: max(one.validation))
        np.save(finished / "probability.npy", best.probability.astype(np.float64))
        record = {
            "epochs": len(best.validation), "best_epoch": int(np.argmax(best.validation)) + 1,
            "validation": best.validation, "seconds": best.seconds, "chosen": best.chosen,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }  # fmt: skip
        (finished / "training.json").write_text(json.dumps(record))
    shutil.copytree(finished, job["output"], dirs_exist_ok=True)


if __name__ == "__main__":
    with open_dagster_pipes():
        main(Path(sys.argv[1]))
