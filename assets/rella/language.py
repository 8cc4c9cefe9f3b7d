"""Group `language`: LoRA adapters of the language model, and their predictions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

import rarec
from assets.framework.mlflow_models import pinned
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from rarec.data.ctr import CtrSamples
from rarec.data.templates import Template
from rarec.rella.predict import Adapter, PredictionSettings, PredictJob, gather_facts, gather_predictions
from rarec.rella.training_samples import Variant, load_variants, save_variants
from rarec.rella.tuning import TUNING, TuningJob, TuningSettings
from resources.artifacts.store import Artifact
from resources.mlflow.tracked_run import MODEL_NOT_LOGGED, TrackedRun

PROMPTS = ("interactions", "ctr_samples", "textual_samples", "base_language_model", "retrieval_enhanced_samples")
"""Artifacts that prompts are built from."""
SERVED = ("base_language_model", "item_catalog", "user_profiles", "semantic_item_vectors")
"""Artifacts that the model needs for scoring, besides its adapter."""
FIGURES = ("AUC", "LogLoss", "ACC")


def answers(request: Request[Any]) -> dict[str, Any]:
    """The two possible answers, as part of an identity."""
    return {"answers": [request.template.yes, request.template.no]}


def prompt_fields(request: Request[Any]) -> dict[str, Any]:
    """The fields of `rarec.rella.prompt_source.PromptJob`."""
    return {
        **{name: request.path(name) for name in PROMPTS},
        "base": request.inputs["base_language_model"].fingerprint,
        "cache": request.workspace.hub_cache,
        "yes": request.template.yes,
        "no": request.template.no,
    }


def _tuning(request: Request[TuningSettings]) -> TuningSettings:
    """The settings, as they are for this language model."""
    return request.settings.for_model(request.inputs["base_language_model"].manifest.config["source"])


@stage(
    group="language",
    version="2",
    settings=TuningSettings,
    shown=("epochs", "learning_rate", "rank"),
    inputs=(*PROMPTS, "semantic_item_vectors", "item_catalog", "user_profiles", "mixed_reit_samples"),
    # An adapter fits one language model, so that model's identity is part of the adapter's, not only its content.
    fingerprints={"base": "base_language_model"},
    kinds={"pytorch", "huggingface", "deepspeed"},
    trains=True,
    prepare=_tuning,
    config=lambda request: {**request.prepared.model_dump(mode="json"), **answers(request)},
)
def lora_checkpoint(job: Job[TuningSettings]) -> Outcome:
    """LoRA adapters tuned on the mixed samples; the first one goes to MLflow as a model that gives probabilities."""
    variants = load_variants(job.path("mixed_reit_samples"))
    save_variants(variants, job.folder)
    told = {variant.name: _tune(job, variant) for variant in variants}
    outcome = told[variants[0].name]
    for name, one in told.items():
        tuned = json.loads((job.folder / name / TUNING).read_text())
        outcome.values[f"behaviours dropped {name}"] = tuned["behaviours_dropped"]
        outcome.values[f"validation AUC {name}"] = one.values["validation AUC"]
    model = log_language_model(job.run, job.inputs, job.folder / variants[0].name, job.template)
    outcome.values["mlflow_model"] = model or MODEL_NOT_LOGGED
    return outcome


def _tune(job: Job[TuningSettings], variant: Variant) -> Outcome:
    """One adapter, in a nested MLflow run."""
    work = TuningJob(
        settings=job.prepared,
        seed=variant.seed,
        training_samples=job.path("mixed_reit_samples") / variant.name,
        random=variant.random,
        **prompt_fields(job),
    )
    params = {"mode": variant.mode, "seed": variant.seed, **job.prepared.model_dump()}
    return job.train_one(variant.name, params, work, FIGURES)


@stage(
    group="language",
    version="3",
    settings=PredictionSettings,
    inputs=(*PROMPTS, "lora_checkpoint"),
    fingerprints={"base": "base_language_model"},
    kinds={"pytorch", "parquet"},
    trains=True,
    precision=False,
    extras=answers,
)
def ctr_predictions(job: Job[PredictionSettings]) -> Outcome:
    """P(yes) of validation and test samples: untuned and by every adapter, with recent and retrieved histories."""
    lora = job.path("lora_checkpoint")
    adapters = tuple(Adapter(name=one.name, folder=lora / one.name) for one in load_variants(lora))
    job.train(PredictJob(settings=job.settings, adapters=adapters, **prompt_fields(job)))
    samples = CtrSamples.load(job.path("ctr_samples"))
    try:
        tables = gather_predictions(job.folder, samples, job.settings)
    except RuntimeError as error:
        raise dg.Failure(str(error)) from error
    values: dict[str, Any] = {f"{split} samples": len(table) for split, table in tables.items()}
    facts = gather_facts(job.folder)
    prompts, dropped = (sum(fact[name] for fact in facts) for name in ("prompts", "behaviours_dropped"))
    values |= {"prompts": prompts, "behaviours_dropped": dropped, "models": len(tables["test"].columns) - 2}
    if scored := sum(fact["scored"] for fact in facts):  # otherwise an earlier attempt has finished everything
        values["prompts_per_s"] = round(scored / max(fact["seconds"] for fact in facts), 1)
    return Outcome(values, metrics=dict(values))


def log_language_model(
    run: TrackedRun, inputs: Mapping[str, Artifact], adapter: Path, template: Template
) -> str | None:
    """Log adapter and language model as an MLflow model; its URI, or None if MLflow is away."""
    from resources.mlflow.pyfunc import rella as pyfunc  # it imports mlflow, which takes seconds

    config = inputs["base_language_model"].manifest.config
    quantised = [] if config["quantisation"] == "none" else ["bitsandbytes"]
    return run.log_pyfunc(
        "model",
        Path(pyfunc.__file__),
        {"adapter": adapter, **{name: inputs[name].path for name in SERVED}},
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
            "sentencepiece",
            *quantised,
        ),
        code_paths=[str(Path(rarec.__file__).parent)],
        signature=pyfunc.signature(),
        model_config={
            "base": inputs["base_language_model"].fingerprint,
            "template": json.dumps(template.model_dump(mode="json")),
            "behaviours": inputs["textual_samples"].manifest.config["behaviours"],
        },
    )
