"""What report assets share: files in MLflow, links, pictures in Dagster's pages, training curves."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rarec.reports.page import ReportPaths
from rarec.reports.records import Effort, Epoch, Link
from resources.artifacts.store import Artifact
from resources.mlflow.tracked_run import TrackedRun

EFFORTS = "efforts.json"  # what the trainings of an artifact took


def log_report(run: TrackedRun, paths: ReportPaths) -> None:
    """Log a report's files to its MLflow run."""
    run.log_file(paths.html)
    run.log_file(paths.json)
    for plot in paths.plots.values():
        run.log_file(plot, "plots")


def links_to(run: TrackedRun) -> list[Link]:
    """The page of the MLflow run, if a tracking server shows one."""
    return [Link(label="MLflow run", url=run.url)] if run.url.startswith("http") else []


def image(png: Path, what: str) -> str:
    """Markdown that shows a picture inside Dagster's metadata, small enough for its dialog."""
    small = io.BytesIO()
    with Image.open(png) as picture:
        picture.thumbnail((900, 900))
        picture.save(small, "PNG")
    return f"![{what}](data:image/png;base64,{base64.b64encode(small.getvalue()).decode()})"


def effort(model: str, values: Mapping[str, Any], history: Path, figure: str) -> Effort:
    """What a training took, from the metadata of its artifact and from what `rarec.training.fit` wrote.

    ``figure`` is the validation figure that chose the epoch, if there is one.
    """
    records = json.loads(history.read_text())["history"]
    validation = tuple(record[figure] for record in records if figure in record)
    taken = {name: values[name] for name in ("epochs", "best_epoch", "seconds", "peak_memory_mib")}
    return Effort(model=model, **taken, validation=validation)


def save_efforts(efforts: Sequence[Effort], folder: Path) -> None:
    """Write what several trainings took, for `load_efforts`."""
    (folder / EFFORTS).write_text(json.dumps([one.model_dump() for one in efforts]))


def load_efforts(artifact: Artifact) -> list[Effort]:
    """What the trainings of an artifact took."""
    return [Effort.model_validate(one) for one in json.loads(artifact.file(EFFORTS).read_text())]


def course(history: Path, figures: Sequence[str]) -> dict[str, Any]:
    """``epochs`` and ``best_epoch`` of a training curve, from what `rarec.training.fit` wrote.

    ``figures`` names the validation figures to show.
    """
    summary = json.loads(history.read_text())
    epochs = tuple(
        Epoch(epoch=int(record["epoch"]), loss=record["loss"], validation={name: record[name] for name in figures})
        for record in summary["history"]
    )
    return {"epochs": epochs, "best_epoch": epochs[summary["best_epoch"]].epoch}
