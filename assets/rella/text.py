"""Group `text`: samples of the click-through task, and the parts that their prompts are made of."""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.data.raw import load_counts, load_table
from assets.framework.checks import artifact_check
from assets.framework.stage import (
    OWNER,
    Outcome,
    StageConfig,
    markdown_table,
    materialise,
    refuse_bad_input,
    resolve,
    takes,
    upstream,
)
from rarec.config import Settings
from rarec.data.ctr import SPLITS, CtrSamples, CtrSettings, build_ctr_samples, ctr_leaks
from rarec.data.spec import DatasetSpec
from rarec.data.templates import find_template, item_texts
from rarec.rella.prompt_source import load_items, save_recent
from rarec.text.prompts import Catalogue, build_parts
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

SAMPLES_VERSION = "1"
TEXT_VERSION = "1"
PREVIEW = 3


class TextSettings(Settings):
    """Settings of the prompts."""

    behaviours: int = pydantic.Field(
        default=30, ge=1, description="K, behaviours in a prompt: the most recent, or the retrieved ones."
    )


@takes(CtrSettings)
class CtrConfig(StageConfig):
    """Run configuration of `ctr_samples`."""


@takes(TextSettings)
class TextConfig(StageConfig):
    """Run configuration of `textual_samples`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"ctr_samples": CtrSettings, "textual_samples": TextSettings}


@dg.asset(
    deps=["interactions", "user_profiles"],
    group_name="text",
    kinds={"numpy"},
    owners=[OWNER],
    code_version=SAMPLES_VERSION,
)
@refuse_bad_input
def ctr_samples(
    context: dg.AssetExecutionContext,
    config: CtrConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Will this user like this item? One sample an interaction with enough history, split by global time 8:1:1."""
    spec = folders.spec(context.partition_key)
    settings = resolve(CtrSettings, config, spec, "ctr_samples")
    inputs = upstream(context, store, "interactions", "user_profiles")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        table = load_table(inputs["interactions"], "interactions")
        liked = spec.is_positive(table["rating"].to_numpy())
        n_users = len(load_table(inputs["user_profiles"], "users"))
        time = load_counts(inputs["interactions"])["time"]
        samples = build_ctr_samples(table["user_index"], table["timestamp"], liked, n_users, time, settings)
        samples.save(folder)
        leaks = ctr_leaks(samples, table["timestamp"], time)
        before = samples.position - samples.history_start
        values = {
            **{f"{split} samples": samples.rows(split).stop - samples.rows(split).start for split in SPLITS},
            **{
                f"{split} share of likes": round(float(samples.label[samples.rows(split)].mean()), 4)
                for split in SPLITS
            },
            "mean_history": round(float(before.mean()), 1),
            "longest_history": int(before.max()),
            "split_by": "global time" if time == "clock" else "user, drawn with the seed",
            **{f"{name} targets": count for name, count in leaks.items()},
            "dagster/row_count": len(samples),
        }
        return Outcome(values, metrics={k: v for k, v in values.items() if not isinstance(v, str)})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=SAMPLES_VERSION,
        settings={
            **settings.model_dump(mode="json"),
            "label_threshold": spec.label_threshold,
            "label_comparison": spec.label_comparison,
        },
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


@dg.asset(
    deps=["interactions", "item_catalog", "user_profiles", "ctr_samples"],
    group_name="text",
    kinds={"parquet", "numpy"},
    owners=[OWNER],
    code_version=TEXT_VERSION,
)
@refuse_bad_input
def textual_samples(
    context: dg.AssetExecutionContext,
    config: TextConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Prompts with the K most recent behaviours: their parts as text, and which of them each sample's prompt has."""
    spec = folders.spec(context.partition_key)
    settings = resolve(TextSettings, config, spec, "textual_samples")
    template = find_template(spec.domain, spec.template)
    inputs = upstream(context, store, "interactions", "item_catalog", "user_profiles", "ctr_samples")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        items = load_table(inputs["item_catalog"], "items")
        item_index = load_items(inputs["interactions"].path)
        rating = load_table(inputs["interactions"], "interactions")["rating"].to_numpy()
        samples = CtrSamples.load(inputs["ctr_samples"].path)
        parts = build_parts(template, items, load_table(inputs["user_profiles"], "users"), item_index, rating)
        parts.save(folder)
        Catalogue(item_texts(items, template.item), item_texts(items, template.description)).save(folder)
        recent = save_recent(folder, samples, settings.behaviours)
        shown = np.linspace(0, len(samples) - 1, PREVIEW).astype(np.int64)
        position = samples.position[shown]
        rows = parts.of(samples.user[shown], item_index[position], position, recent[shown])
        answers = np.where(samples.label[shown], template.yes, template.no)
        preview = "\n\n".join(
            f"```text\n{parts.text(row)}\n```\n*{answer}*" for row, answer in zip(rows, answers, strict=True)
        )
        kept = np.minimum(samples.position - samples.history_start, settings.behaviours)
        values = {
            "behaviours": settings.behaviours,
            "mean_behaviours": round(float(kept.mean()), 2),
            "short_histories": int((kept < settings.behaviours).sum()),
            "profiles": sum(bool(text) for text in parts.texts[: parts.lines - 1]),
            "lines": parts.questions - parts.lines,
            "dagster/row_count": len(samples),
        }
        words = pd.DataFrame([(name, str(value)) for name, value in template], columns=["part", "wording"])
        return Outcome(values, {"preview": preview, "template": markdown_table(words)}, dict(values))

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=TEXT_VERSION,
        settings={**settings.model_dump(mode="json"), "template": template.model_dump(mode="json")},
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


def _no_leak(_spec: DatasetSpec, artifact: Artifact) -> tuple[bool, dict[str, int]]:
    values = artifact.metadata["values"]
    leaks = {name: values[f"{name} targets"] for name in ("repeated", "out_of_order")}
    return not any(leaks.values()), leaks


CHECKS = [
    artifact_check(
        "no_leak_between_splits",
        "ctr_samples",
        "No target is in two splits, and with a clock none is earlier than the split before it ends.",
        _no_leak,
    )
]
