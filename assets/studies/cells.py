"""What sweeps and studies share: a grid of settings, each cell trained in a nested MLflow run, and a leaderboard.

A cell that an earlier attempt has finished is not trained again: its checkpoint is at its end.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from assets.framework.configuration import make_settings, with_defaults
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.stage import Job
from rarec.config import Settings
from rarec.data.spec import DatasetSpec
from rarec.studies.grid import Grid, leaderboard, trial_name
from rarec.training.fit import HISTORY
from rarec.training.job import WorkerJob

S = TypeVar("S", bound=Settings)

LEADERBOARD = "leaderboard.parquet"


@dataclass(frozen=True)
class Cell(Generic[S]):
    """One combination: the values that vary, and the whole settings of its training."""

    name: str
    values: Mapping[str, Any]
    settings: S


@dataclass(frozen=True)
class Board:
    """How cells are ranked and reported.

    Attributes:
        figures: validation figures that are shown.
        choice: the one that ranks.
        stage: whose settings vary.
        stage_of: varied settings that belong to another stage.
    """

    figures: tuple[str, ...]
    choice: str
    stage: str
    stage_of: Mapping[str, str]


def cells_of(
    kind: type[S], grid: Grid, spec: DatasetSpec, stage: str, without: Collection[str] = ()
) -> tuple[Cell[S], ...]:
    """Every combination. If the settings refuse one, none is trained.

    Args:
        kind: settings of ``stage``; its defaults in the data set's file apply to the settings that do not vary.
        without: varied settings that do not belong to the stage.

    Raises:
        InputError: a combination that the settings refuse.
    """
    return tuple(
        Cell(
            trial_name(trial),
            trial,
            make_settings(
                kind,
                with_defaults(
                    {name: value for name, value in trial.items() if name not in without}, spec.overrides, stage
                ),
                f"trial {trial_name(trial)} of {stage} for {spec.name}",
            ),
        )
        for trial in grid.trials()
    )


def trials_identity(cells: Collection[Cell[Any]]) -> dict[str, Any]:
    """The cells as part of an identity."""
    return {"trials": {cell.name: cell.settings.model_dump(mode="json") for cell in cells}}


def run_cells(
    job: Job[Any], cells: Collection[Cell[S]], trains: Callable[[Cell[S]], WorkerJob], board: Board
) -> Outcome:
    """Train every cell in a nested run and rank them."""
    shown = ("epochs", "best_epoch", "seconds", *(f"validation {name}" for name in board.figures))
    rows = []
    for cell in cells:
        one = job.train_one(cell.name, {**cell.settings.model_dump(), **cell.values}, trains(cell), board.figures)
        _keep_history(job.folder / cell.name, job.folder / f"{cell.name}.json")
        rows.append({**cell.values, **{key: one.values[key] for key in shown}})
    table = leaderboard(rows, f"validation {board.choice}")
    table.to_parquet(job.folder / LEADERBOARD, index=False)
    job.run.log_table(table, "leaderboard.json")
    varied = next(iter(cells)).values
    best = {name: table[name].tolist()[0] for name in varied}  # not of a row, where all would be floats
    config = _as_config(best, board)
    figure = float(table[f"validation {board.choice}"].tolist()[0])
    values = {
        "trials": len(table),
        f"best validation {board.choice}": figure,
        "best": trial_name(best),
        "its settings": json.dumps(config),
    }
    markdown = {"leaderboard": markdown_table(table.round(5)), "for the data set's file": _as_toml(config)}
    metrics = {f"best validation {board.choice}": figure, "trials": float(len(table))}
    return Outcome(values, markdown, metrics, {"table": LEADERBOARD})


def _keep_history(output: Path, kept: Path) -> None:
    """Keep the history and delete the weights: a sweep only ranks."""
    (output / HISTORY).rename(kept)
    shutil.rmtree(output)


def _as_config(best: Mapping[str, Any], board: Board) -> dict[str, dict[str, Any]]:
    """For the launchpad, or CONFIG= of `make run`."""
    config: dict[str, dict[str, Any]] = {}
    for name, value in best.items():
        config.setdefault(board.stage_of.get(name, board.stage), {})[name] = value
    return config


def _as_toml(config: Mapping[str, Mapping[str, float]]) -> str:
    """The same as defaults of the data set, in a block of code."""
    stages = (
        "\n".join([f"[overrides.{stage}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())])
        for stage, values in config.items()
    )
    return "```toml\n" + "\n\n".join(stages) + "\n```"
