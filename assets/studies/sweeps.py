"""Group `sweeps`: settings tried against each other on validation figures, each trial a nested run in MLflow."""

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import dagster as dg
import numpy as np
import pydantic

from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    make_settings,
    markdown_table,
    materialise,
    refuse_bad_input,
    resolve,
    takes,
    upstream,
)
from assets.framework.training import RETRIES, cancellable, train, training_outcome
from assets.raserec.recommender import VALIDATION_FIGURES as RANKING_FIGURES
from assets.raserec.recommender import finetune_job
from assets.rella.language import SOURCES, VALIDATION_FIGURES, prompts_job
from rarec.config import Settings
from rarec.data.ctr import CtrSamples
from rarec.data.spec import DatasetSpec
from rarec.data.templates import find_template
from rarec.raserec.settings import FinetuneSettings
from rarec.rella.prompt_source import load_items, save_histories
from rarec.rella.training_samples import Mode, draw_shots
from rarec.rella.tuning import TuningSettings
from rarec.rella.vectors import VECTORS
from rarec.studies.grid import Grid, leaderboard, trial_name
from rarec.training.fit import HISTORY
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

S = TypeVar("S", bound=Settings)

SWEEP_VERSION = "1"
LEADERBOARD = "leaderboard.parquet"
MODE: Mode = "mixed"
# Settings of a trial of `rella_sweep` that belong to a stage before tuning.
STAGE_OF = {"shots": "mixed_reit_samples", "behaviours": "textual_samples"}


class RaserecSweepSettings(Grid):
    """What is tried of stage 2; all else is as in `raserec_finetuned` of the data set."""

    memories: tuple[int, ...] = pydantic.Field(default=(10, 20, 50), description="Values of K.")
    alpha: tuple[float, ...] = pydantic.Field(default=(0.3, 0.5, 0.7), description="Values of alpha.")
    beta: tuple[float, ...] = pydantic.Field(default=(1.0,), description="Values of beta.")


class RellaSweepSettings(Grid):
    """What is tried of tuning; all else is as in `lora_checkpoint` of the data set."""

    shots: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = pydantic.Field(
        default=(256, 1024, 8192), description="Numbers of training samples, each with both histories."
    )
    learning_rate: tuple[float, ...] = pydantic.Field(default=(1e-3,), description="Adam's highest learning rates.")
    behaviours: tuple[Annotated[int, pydantic.Field(ge=1)], ...] | None = pydantic.Field(
        default=None, description="Values of K, behaviours in a prompt; without them that of `textual_samples`."
    )
    seed: int = pydantic.Field(default=42, ge=0, description="Seed of the draws and of every tuning.")


@takes(RaserecSweepSettings)
class RaserecSweepConfig(StageConfig):
    """Run configuration of `raserec_sweep`."""


@takes(RellaSweepSettings)
class RellaSweepConfig(StageConfig):
    """Run configuration of `rella_sweep`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "raserec_sweep": RaserecSweepSettings,
    "rella_sweep": RellaSweepSettings,
}


@dg.asset(
    deps=["user_sequences", "raserec_pretrained", "memory_bank"],
    group_name="sweeps",
    kinds={"pytorch", "deepspeed"},
    owners=[OWNER],
    code_version=SWEEP_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def raserec_sweep(
    context: dg.AssetExecutionContext,
    config: RaserecSweepConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """Stage 2 with every combination of K, alpha and beta, ranked by validation NDCG@10."""
    spec = folders.spec(context.partition_key)
    grid = resolve(RaserecSweepSettings, config, spec, "raserec_sweep")
    settings = _settings_of(FinetuneSettings, grid, spec, "raserec_finetuned")
    inputs = upstream(context, store, "user_sequences", "raserec_pretrained", "memory_bank")
    encoder = inputs["raserec_pretrained"]

    def build(folder: Path, run: TrackedRun) -> Outcome:
        def try_one(name: str, trial: Mapping[str, Any], output: Path, nested: TrackedRun) -> dict[str, Any]:
            bank = inputs["memory_bank"].path
            job = finetune_job(settings[name], inputs["user_sequences"].path, encoder, bank)
            return train(context, launcher, folders, nested, "rarec.raserec.finetune", job, output, name)

        return _sweep(folder, run, grid, settings, try_one, RANKING_FIGURES, "NDCG@10", "raserec_finetuned")

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=SWEEP_VERSION,
        settings={**_identity(settings), **launcher.result_settings()},
        inputs={**inputs, "encoder": encoder.fingerprint},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


@dg.asset(
    deps=[*SOURCES, "semantic_item_vectors", "item_catalog", "user_profiles"],
    group_name="sweeps",
    kinds={"pytorch", "huggingface", "deepspeed"},
    owners=[OWNER],
    code_version=SWEEP_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def rella_sweep(
    context: dg.AssetExecutionContext,
    config: RellaSweepConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """Adapters tuned on mixed samples with every number of shots, learning rate and K, ranked by validation AUC."""
    spec = folders.spec(context.partition_key)
    grid = resolve(RellaSweepSettings, config, spec, "rella_sweep")
    template = find_template(spec.domain, spec.template)
    inputs = upstream(context, store, *SOURCES, "semantic_item_vectors", "item_catalog", "user_profiles")
    samples = CtrSamples.load(inputs["ctr_samples"].path)
    available = samples.rows("train").stop  # more shots than these would be the same training again
    grid = grid.model_copy(update={"shots": tuple(dict.fromkeys(min(shots, available) for shots in grid.shots))})
    settings = _settings_of(TuningSettings, grid, spec, "lora_checkpoint", without=STAGE_OF)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        def try_one(name: str, trial: Mapping[str, Any], output: Path, nested: TrackedRun) -> dict[str, Any]:
            shots = place / name
            draw_shots(samples, trial["shots"], MODE, grid.seed).save(shots)
            job = {
                **prompts_job(inputs, folders, template),
                "settings": settings[name].model_dump(),
                "seed": grid.seed,
                "shots": str(shots),
            }
            if "behaviours" in trial:
                job["histories"] = str(place / f"histories-{trial['behaviours']}")
            return train(context, launcher, folders, nested, "rarec.rella.tuning", job, output, name)

        with tempfile.TemporaryDirectory(dir=folders.workdir("rella_sweep", run.fingerprint)) as scratch:
            place = Path(scratch)
            if grid.behaviours:
                items = load_items(inputs["interactions"].path)
                vectors = np.load(inputs["semantic_item_vectors"].path / VECTORS)
                for k in grid.behaviours:  # which trials share
                    histories = place / f"histories-{k}"
                    histories.mkdir()
                    save_histories(histories, samples, items, vectors, k)
            return _sweep(folder, run, grid, settings, try_one, VALIDATION_FIGURES, "AUC", "lora_checkpoint")

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=SWEEP_VERSION,
        settings={
            **_identity(settings),
            "seed": grid.seed,
            **launcher.result_settings(),
            "answers": [template.yes, template.no],
        },
        inputs={**inputs, "base": inputs["base_language_model"].fingerprint},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


def _settings_of(
    kind: type[S], grid: Grid, spec: DatasetSpec, stage: str, without: Collection[str] = ()
) -> dict[str, S]:
    """Each trial's settings by its name; all are refused, or none is begun.

    Args:
        without: what the stage itself does not set.
    """
    defaults = spec.overrides.get(stage, {})
    return {
        trial_name(trial): make_settings(
            kind,
            {**defaults, **{name: value for name, value in trial.items() if name not in without}},
            f"trial {trial_name(trial)} of {stage} for {spec.name}",
        )
        for trial in grid.trials()
    }


def _identity(settings: Mapping[str, Settings]) -> dict[str, Any]:
    return {"trials": {name: one.model_dump(mode="json") for name, one in settings.items()}}


def _sweep(
    folder: Path,
    run: TrackedRun,
    grid: Grid,
    settings: Mapping[str, Settings],
    try_one: Callable[[str, Mapping[str, Any], Path, TrackedRun], dict[str, Any]],
    figures: tuple[str, ...],
    choice: str,
    stage: str,
) -> Outcome:
    """Train every trial in a nested run and rank them.

    A trial that an attempt before this one has finished is not trained again: its checkpoint is at its end.
    """
    shown = ("epochs", "best_epoch", "seconds", *(f"validation {name}" for name in figures))
    rows = []
    for trial in grid.trials():
        name = trial_name(trial)
        output = folder / name
        output.mkdir()
        with run.nested(name, settings[name].model_dump() | trial) as nested:
            summary = try_one(name, trial, output, nested)
            one = training_outcome(nested, summary, figures, figures)
            nested.log_metrics(one.metrics)
        (output / HISTORY).rename(folder / f"{name}.json")
        shutil.rmtree(output)  # what is asked for is the ranking, not the weights
        rows.append({**trial, **{key: one.values[key] for key in shown}})
    table = leaderboard(rows, f"validation {choice}")
    table.to_parquet(folder / LEADERBOARD, index=False)
    run.log_table(table, "leaderboard.json")
    best = {name: table[name].tolist()[0] for name in grid.lists()}  # not of a row, where all would be floats
    config = _as_config(best, stage)
    figure = float(table[f"validation {choice}"].tolist()[0])
    values = {
        "trials": len(table),
        f"best validation {choice}": figure,
        "best": trial_name(best),
        "its settings": json.dumps(config),
    }
    markdown = {"leaderboard": markdown_table(table.round(5)), "for the data set's file": _as_toml(config)}
    metrics = {f"best validation {choice}": figure, "trials": float(len(table))}
    return Outcome(values, markdown, metrics, {"table": LEADERBOARD})


def _as_config(best: Mapping[str, Any], stage: str) -> dict[str, dict[str, Any]]:
    """For the launchpad, or CONFIG= of `make run`."""
    config: dict[str, dict[str, Any]] = {}
    for name, value in best.items():
        config.setdefault(STAGE_OF.get(name, stage), {})[name] = value
    return config


def _as_toml(config: Mapping[str, Mapping[str, float]]) -> str:
    """The same as defaults of the data set, in a block of code."""
    stages = (
        "\n".join([f"[overrides.{stage}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())])
        for stage, values in config.items()
    )
    return "```toml\n" + "\n\n".join(stages) + "\n```"
