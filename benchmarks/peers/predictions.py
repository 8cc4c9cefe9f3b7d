"""A model of torch-rechub on our click samples, in the environment of the peers: `python predictions.py JOB`.

JOB is a JSON file: ``exchange`` (what `peer_predictions` wrote: samples.npz), ``output``, ``model`` (dcnv2 or din),
``rows`` (all or shots), ``dim``, ``learning_rates``, ``weight_decays``, ``batch_size``, ``epochs``, ``patience``
(epochs without a better validation AUC) and ``seed``. It imports nothing of RaRec. Every pair of learning rate and
weight decay is tried; validation AUC chooses among them and the epoch. It writes ``probability.npy`` (validation and
test samples, in their order) and ``training.json``.
"""

import json
import resource
import sys
import time
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


def features_of(fields: dict[str, int], items: int, dim: int, pooling: str) -> tuple[list[Any], list[Any]]:
    """Fields of the sample, and its two histories (all items, and those that were liked), which share the item's."""
    single = [SparseFeature(name, size, dim) for name, size in fields.items()]
    histories = [
        SequenceFeature(name, items, dim, pooling=pooling, shared_with="item", padding_idx=0)
        for name in ("history", "liked")
    ]
    return single, histories


def build(job: dict[str, Any], fields: dict[str, int]) -> torch.nn.Module:
    """The library's model with the settings of its authors' examples."""
    items, dim = fields["item"], job["dim"]
    if job["model"] == "dcnv2":
        single, histories = features_of(fields, items, dim, "mean")
        return DCNv2([*single, *histories], n_cross_layers=3, mlp_params={"dims": [256, 128], "dropout": 0.2})
    single, histories = features_of(fields, items, dim, "concat")
    others = [one for one in single if one.name != "item"]
    target = next(one for one in single if one.name == "item")
    return DIN(
        others, histories, [target, SparseFeature("target", items, dim, shared_with="item")],
        mlp_params={"dims": [256, 128], "dropout": 0.2}, attention_mlp_params={"dims": [36]},
    )  # fmt: skip


def predict(model: torch.nn.Module, data: dict[str, torch.Tensor], rows: torch.Tensor) -> np.ndarray:
    """(n,) probabilities of these samples."""
    model.eval()
    with torch.no_grad():
        parts = [model({name: value[part] for name, value in data.items()}) for part in rows.split(CHUNK)]
    return torch.cat(parts).numpy()


def train(
    job: dict[str, Any], fields: dict[str, int], data: dict[str, torch.Tensor], label: torch.Tensor,
    rows: dict[str, torch.Tensor], rate: float, decay: float,
) -> tuple[float, np.ndarray, list[dict[str, float]]]:  # fmt: skip
    """Best validation AUC, and there the probabilities of validation and test samples; and the epochs."""
    torch.manual_seed(job["seed"])
    model = build(job, fields)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    best, found, history = -1.0, np.empty(0), []
    started = time.perf_counter()
    for epoch in range(job["epochs"]):
        model.train()
        for part in rows["train"][torch.randperm(len(rows["train"]))].split(job["batch_size"]):
            if len(part) < 2:  # batch normalisation needs two
                continue
            optimizer.zero_grad()
            answer = model({name: value[part] for name, value in data.items()})
            torch.nn.functional.binary_cross_entropy(answer, label[part]).backward()
            optimizer.step()
        answers = predict(model, data, rows["valid"])
        auc = float(roc_auc_score(label[rows["valid"]].numpy(), answers))
        history.append({"epoch": epoch, "AUC": auc, "seconds": time.perf_counter() - started})
        told = f"{job['model']}, {job['rows']}, rate {rate:g}, decay {decay:g}, epoch {epoch + 1}: AUC {auc:.4f}"
        PipesContext.get().log.info(told)
        print(told, flush=True)
        if auc > best:
            best, found, kept = auc, np.concatenate([answers, predict(model, data, rows["test"])]), epoch
        elif epoch - kept >= job["patience"]:
            break
    return best, found, history


def main(file: Path) -> None:
    """Search, choose on validation, and write the probabilities."""
    job = json.loads(file.read_text())
    with np.load(Path(job["exchange"]) / "samples.npz") as given:
        fields = dict(zip(given["names"].tolist(), given["sizes"].tolist(), strict=True))
        data = {name: torch.from_numpy(given["fields"][:, place]).long() for place, name in enumerate(fields)}
        data |= {name: torch.from_numpy(given[name]).long() for name in ("history", "liked")}
        data["target"] = data["item"]
        label = torch.from_numpy(given["label"]).float()
        bounds, shots = given["splits"], torch.from_numpy(given["shots"])
    rows = {name: torch.arange(bounds[i], bounds[i + 1]) for i, name in enumerate(("train", "valid", "test"))}
    if job["rows"] == "shots":
        rows["train"] = shots
    started = time.perf_counter()
    tried = [
        (train(job, fields, data, label, rows, *pair), pair)
        for pair in product(job["learning_rates"], job["weight_decays"])
    ]
    (auc, found, history), (rate, decay) = max(tried, key=lambda one: one[0][0])
    np.save(Path(job["output"]) / "probability.npy", found.astype(np.float64))
    record = {
        "history": history, "best_epoch": int(np.argmax([one["AUC"] for one in history])), "AUC": auc,
        "learning_rate": rate, "weight_decay": decay, "tried": len(tried), "seconds": time.perf_counter() - started,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    (Path(job["output"]) / "training.json").write_text(json.dumps(record))


if __name__ == "__main__":
    with open_dagster_pipes():
        main(Path(sys.argv[1]))
