"""Group `language`: LoRA adapters of the language model, and the probabilities that come of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

import rarec
from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    materialise,
    refuse_bad_input,
    resolve,
    takes,
    upstream,
)
from assets.framework.training import RETRIES, cancellable, pinned, run_worker, train, training_outcome
from rarec.config import Settings
from rarec.data.ctr import CtrSamples, draw
from rarec.data.templates import Template, find_template
from rarec.rella.predict import SCORED, PredictionSettings
from rarec.rella.training_samples import load_variants, save_variants
from rarec.rella.tuning import TUNING, TuningSettings
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED, TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Folders

LORA_VERSION = "2"
PREDICTION_VERSION = "2"
SOURCES = ("interactions", "ctr_samples", "textual_samples", "base_language_model", "retrieval_enhanced_samples")
VALIDATION_FIGURES = ("AUC", "LogLoss", "ACC")


@takes(TuningSettings)
class LoraConfig(StageConfig):
    """Run configuration of `lora_checkpoint`."""


@takes(PredictionSettings)
class PredictionConfig(StageConfig):
    """Run configuration of `ctr_predictions`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {
    "lora_checkpoint": TuningSettings,
    "ctr_predictions": PredictionSettings,
}


@dg.asset(
    deps=[*SOURCES, "semantic_item_vectors", "item_catalog", "user_profiles", "mixed_reit_samples"],
    group_name="language",
    kinds={"pytorch", "huggingface", "deepspeed"},
    owners=[OWNER],
    code_version=LORA_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def lora_checkpoint(
    context: dg.AssetExecutionContext,
    config: LoraConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """LoRA adapters tuned on the mixed samples; the first one goes to MLflow as a model that gives probabilities."""
    spec = folders.spec(context.partition_key)
    settings = resolve(TuningSettings, config, spec, "lora_checkpoint")
    template = find_template(spec.domain, spec.template)
    inputs = upstream(
        context, store, *SOURCES, "semantic_item_vectors", "item_catalog", "user_profiles", "mixed_reit_samples"
    )
    variants = load_variants(inputs["mixed_reit_samples"].path)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        outcome = Outcome()
        save_variants(variants, folder)
        for variant in variants:
            output = folder / variant.name
            output.mkdir()
            job = {
                **prompts_job(inputs, folders, template),
                "settings": settings.model_dump(),
                "seed": variant.seed,
                "shots": str(inputs["mixed_reit_samples"].path / variant.name),
            }
            with run.nested(
                variant.name, {"mode": variant.mode, "seed": variant.seed, **settings.model_dump()}
            ) as nested:
                summary = train(
                    context, launcher, folders, nested, "rarec.rella.tuning", job, output, variant.name
                )  # fmt: skip
                one = training_outcome(nested, summary, VALIDATION_FIGURES, VALIDATION_FIGURES)
                nested.log_metrics(one.metrics)
            if variant == variants[0]:
                outcome = one
            tuned = json.loads((output / TUNING).read_text())
            outcome.values[f"behaviours dropped {variant.name}"] = tuned["behaviours_dropped"]
            outcome.values[f"validation AUC {variant.name}"] = one.values["validation AUC"]
        outcome.values["mlflow_model"] = (
            log_language_model(run, inputs, folder / variants[0].name, template) or MODEL_NOT_LOGGED
        )
        return outcome

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=LORA_VERSION,
        settings={
            **settings.model_dump(mode="json"),
            **launcher.result_settings(),
            "answers": [template.yes, template.no],
        },
        # An adapter fits one language model: that one's identity, not only its content, is part of the adapter's.
        inputs={**inputs, "base": inputs["base_language_model"].fingerprint},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


@dg.asset(
    deps=[*SOURCES, "lora_checkpoint"],
    group_name="language",
    kinds={"pytorch", "parquet"},
    owners=[OWNER],
    code_version=PREDICTION_VERSION,
    pool="training",
    retry_policy=RETRIES,
)
@cancellable
@refuse_bad_input
def ctr_predictions(
    context: dg.AssetExecutionContext,
    config: PredictionConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
    launcher: TrainingLauncher,
) -> dg.MaterializeResult:
    """P(yes) of validation and test samples: zero-shot and by every adapter, with recent and retrieved histories."""
    spec = folders.spec(context.partition_key)
    settings = resolve(PredictionSettings, config, spec, "ctr_predictions")
    template = find_template(spec.domain, spec.template)
    inputs = upstream(context, store, *SOURCES, "lora_checkpoint")
    lora = inputs["lora_checkpoint"]
    variants = load_variants(lora.path)

    def build(folder: Path, run: TrackedRun) -> Outcome:
        job = {
            **prompts_job(inputs, folders, template),
            "settings": settings.model_dump(),
            "adapters": [{"name": variant.name, "folder": str(lora.path / variant.name)} for variant in variants],
            "output": str(folder),
        }
        run_worker(context, launcher, folders, run, "rarec.rella.predict", job)
        samples = CtrSamples.load(inputs["ctr_samples"].path)
        values: dict[str, Any] = {}
        for split in SCORED:
            shares = sorted(folder.glob(f"{split}-*.parquet"))
            table = pd.concat([pd.read_parquet(share) for share in shares]).sort_values("sample", ignore_index=True)
            asked = draw(samples, split, settings.most(split), settings.seed)
            if not np.array_equal(table["sample"], asked):  # never a table without some rank's share
                raise dg.Failure(
                    f"{len(table)} of {len(asked)} {split} predictions came back from the workers' {len(shares)} shares"
                )
            table.insert(1, "label", samples.label[table["sample"].to_numpy()])
            table.to_parquet(folder / f"{split}.parquet", index=False)
            for share in shares:
                share.unlink()
            values[f"{split} samples"] = len(table)
        facts = [json.loads(file.read_text()) for file in sorted(folder.glob("facts-*.json"))]
        for file in folder.glob("facts-*.json"):
            file.unlink()
        prompts, dropped = (sum(fact[name] for fact in facts) for name in ("prompts", "behaviours_dropped"))
        values |= {
            "prompts": prompts,
            "behaviours_dropped": dropped,
            "models": len(table.columns) - 2,
        }
        if scored := sum(fact["scored"] for fact in facts):  # else an attempt before this one did it all
            values["prompts_per_s"] = round(scored / max(fact["seconds"] for fact in facts), 1)
        return Outcome(values, metrics=dict(values))

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=PREDICTION_VERSION,
        settings={**settings.model_dump(mode="json"), "answers": [template.yes, template.no]},
        inputs={**inputs, "base": inputs["base_language_model"].fingerprint},
        force=config.force,
        build=build,
        folders=folders,
    )
    return result


def prompts_job(inputs: Mapping[str, Artifact], folders: Folders, template: Template) -> dict[str, Any]:
    """What both workers read."""
    return {
        **{name: str(inputs[name].path) for name in SOURCES},
        "base": inputs["base_language_model"].fingerprint,
        "cache": str(folders.hub_cache),
        "yes": template.yes,
        "no": template.no,
    }


def log_language_model(
    run: TrackedRun, inputs: Mapping[str, Artifact], adapter: Path, template: Template
) -> str | None:
    """Log adapter and language model as an MLflow model; its URI, or None if MLflow is away."""
    from resources.mlflow.pyfunc import rella as rella_pyfunc  # it imports mlflow, which takes seconds

    config = inputs["base_language_model"].manifest.config
    quantised = [] if config["quantisation"] == "none" else ["bitsandbytes"]
    names = ("base_language_model", "item_catalog", "user_profiles", "semantic_item_vectors")
    return run.log_pyfunc(
        "model",
        Path(rella_pyfunc.__file__),
        {"adapter": adapter, **{name: inputs[name].path for name in names}},
        requirements=pinned(
            "torch",
            "transformers",
            "peft",
            "faiss-cpu",
            "safetensors",
            "numpy",
            "pandas",
            "pyarrow",
            "pydantic",
            "scikit-learn",
            "psutil",
            *quantised,
        ),
        code_paths=[str(Path(rarec.__file__).parent)],
        signature=rella_pyfunc.signature(),
        model_config={
            "base": inputs["base_language_model"].fingerprint,
            "template": json.dumps(template.model_dump(mode="json")),
            "behaviours": inputs["textual_samples"].manifest.config["behaviours"],
        },
    )
