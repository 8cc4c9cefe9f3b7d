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
from resources.mlflow.tracked_run import TrackedRun


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


def effort(model: str, values: Mapping[str, Any]) -> Effort:
    """What a training took, from the metadata of its artifact."""
    return Effort(model=model, **{name: values[name] for name in Effort.model_fields if name != "model"})


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
