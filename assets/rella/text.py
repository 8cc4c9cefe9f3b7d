"""Group `text`: samples of the click-through task, and the parts that their prompts are made of."""

from typing import Any

import numpy as np
import pandas as pd

from assets.data.clean import load_counts, load_table
from assets.framework.checks import artifact_check
from assets.framework.reuse import Outcome, markdown_table
from assets.framework.stage import Job, Request, stage
from rarec.data.ctr import CtrSamples, CtrSettings, build_ctr_samples, ctr_leaks
from rarec.data.spec import DatasetSpec
from rarec.data.templates import item_texts, wording
from rarec.rella.prompt_source import save_recent
from rarec.text.prompts import Catalogue, TextSettings, build_parts
from rarec.types import SPLITS
from resources.artifacts.store import Artifact

PREVIEW = 3


def labels(request: Request[Any]) -> dict[str, Any]:
    """What makes a like, as part of an identity."""
    return {"label_threshold": request.spec.label_threshold, "label_comparison": request.spec.label_comparison}


@stage(
    group="text",
    version="1",
    settings=CtrSettings,
    inputs=("interactions", "user_profiles"),
    kinds={"numpy"},
    extras=labels,
)
def ctr_samples(job: Job[CtrSettings]) -> Outcome:
    """Will this user like this item? One sample an interaction with enough history, split by global time 8:1:1."""
    table = load_table(job.inputs["interactions"], "interactions", ("user_index", "timestamp", "rating"))
    liked = job.spec.is_positive(table["rating"].to_numpy())
    n_users = len(load_table(job.inputs["user_profiles"], "users", ("user_index",)))
    time = load_counts(job.inputs["interactions"])["time"]
    samples = build_ctr_samples(table["user_index"], table["timestamp"], liked, n_users, time, job.settings)
    samples.save(job.folder)
    leaks = ctr_leaks(samples, table["timestamp"], time)
    before = samples.position - samples.history_start
    rows = {split: samples.rows(split) for split in SPLITS}
    values = {
        **{f"{split} samples": own.stop - own.start for split, own in rows.items()},
        **{f"{split} share of likes": round(float(samples.label[own].mean()), 4) for split, own in rows.items()},
        "mean_history": round(float(before.mean()), 1),
        "longest_history": int(before.max()),
        "split_by": "global time" if time == "clock" else "user, drawn with the seed",
        **{f"{name} targets": count for name, count in leaks.items()},
        "dagster/row_count": len(samples),
    }
    return Outcome(values, metrics={name: value for name, value in values.items() if not isinstance(value, str)})


@stage(
    group="text",
    version="1",
    settings=TextSettings,
    shown=("behaviours",),
    inputs=("interactions", "item_catalog", "user_profiles", "ctr_samples"),
    kinds={"parquet", "numpy"},
    extras=lambda request: {"template": request.template.model_dump(mode="json")},
)
def textual_samples(job: Job[TextSettings]) -> Outcome:
    """Prompts with the K most recent behaviours: their parts as text, and the parts of each sample's prompt."""
    template = job.template
    items = load_table(job.inputs["item_catalog"], "items")
    interactions = load_table(job.inputs["interactions"], "interactions", ("item_index", "rating"))
    item_index, rating = interactions["item_index"].to_numpy(np.int64), interactions["rating"].to_numpy()
    samples = CtrSamples.load(job.path("ctr_samples"))
    parts = build_parts(template, items, load_table(job.inputs["user_profiles"], "users"), item_index, rating)
    parts.save(job.folder)
    Catalogue(item_texts(items, template.item), item_texts(items, template.description)).save(job.folder)
    recent = save_recent(job.folder, samples, job.settings.behaviours)
    shown = np.linspace(0, len(samples) - 1, PREVIEW).astype(np.int64)
    position = samples.position[shown]
    rows = parts.of(samples.user[shown], item_index[position], position, recent[shown])
    answers = np.where(samples.label[shown], template.yes, template.no)
    preview = "\n\n".join(
        f"```text\n{parts.text(row)}\n```\n*{answer}*" for row, answer in zip(rows, answers, strict=True)
    )
    kept = np.minimum(samples.position - samples.history_start, job.settings.behaviours)
    values = {
        "behaviours": job.settings.behaviours,
        "mean_behaviours": round(float(kept.mean()), 2),
        "short_histories": int((kept < job.settings.behaviours).sum()),
        "profiles": sum(bool(text) for text in parts.texts[: parts.lines - 1]),
        "lines": parts.questions - parts.lines,
        "dagster/row_count": len(samples),
    }
    words = pd.DataFrame([(name, wording(value)) for name, value in template], columns=["part", "wording"])
    return Outcome(values, {"preview": preview, "template": markdown_table(words)}, dict(values))


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
