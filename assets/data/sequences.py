"""Group `sequences`: every user's items in time order."""

from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pydantic

from assets.data.raw import load_counts, load_table
from assets.framework.checks import artifact_check
from assets.framework.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, resolve, takes, upstream
from rarec.config import Settings
from rarec.data.sequences import UserSequences, build_sequences, check_splits
from rarec.errors import InputError
from resources.artifacts.store import ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workspace import Folders

CODE_VERSION = "1"
DAY_S = 86_400


class SequenceSettings(Settings):
    """Settings of the sequences."""

    window_days: float = pydantic.Field(
        default=0,
        ge=0,
        description="Newest days (of the data set's own clock) that no training sees, by which a model can be compared "
        "with the champion; 0: none.",
    )


@takes(SequenceSettings)
class SequenceConfig(StageConfig):
    """Run configuration of `user_sequences`."""


STAGE_SETTINGS: dict[str, type[Settings]] = {"user_sequences": SequenceSettings}


@dg.asset(
    deps=["interactions", "item_catalog", "user_profiles"],
    group_name="sequences",
    kinds={"numpy"},
    owners=[OWNER],
    code_version=CODE_VERSION,
)
@refuse_bad_input
def user_sequences(
    context: dg.AssetExecutionContext,
    config: SequenceConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Item sequences in time order with their leave-one-out split: last item test, last but one validation."""
    spec = folders.spec(context.partition_key)
    settings = resolve(SequenceSettings, config, spec, "user_sequences")
    inputs = upstream(context, store, "interactions", "item_catalog", "user_profiles")
    time = load_counts(inputs["interactions"])["time"]

    def build(folder: Path, run: TrackedRun) -> Outcome:
        table = load_table(inputs["interactions"], "interactions")
        users = load_table(inputs["user_profiles"], "users")["user_id"]
        n_items = len(load_table(inputs["item_catalog"], "items"))
        # Someone new has one interaction at first, which must not stop everybody's training.
        arrived = load_counts(inputs["interactions"]).get("incoming_rows", 0)
        window, short_users = {}, "train-only" if arrived else spec.short_users
        until = window_start(settings, table["timestamp"], time == "clock")
        if until is not None:
            table = table[table["timestamp"] < until]
            window, short_users = {"until": until}, "train-only"  # whoever is new has all their events in the window
        sequences = build_sequences(
            table["user_index"], table["item_index"], table["timestamp"], len(users), n_items, short_users, users
        )
        sequences.save(folder)
        prefixes, evaluated = sequences.prefixes("train"), sequences.evaluated_users()
        values = {
            "users": sequences.n_users,
            "items": n_items,
            "interactions": len(sequences.items),
            "training_prefixes": len(prefixes),
            "evaluated_users": len(evaluated),
            "mean_length": float(sequences.lengths.mean()),
            "median_length": float(np.median(sequences.lengths)),
            "longest": int(sequences.lengths.max()),
            "time": time,
            **({"tied_test_targets": sequences.tied_test_targets()} if time == "clock" and len(evaluated) else {}),
            **window,
        }
        return Outcome(values, metrics={k: v for k, v in values.items() if not isinstance(v, str)})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=CODE_VERSION,
        settings={
            "split": spec.split,
            "short_users": spec.short_users,
            **({"window_days": settings.window_days} if settings.window_days else {}),
        },
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


def window_start(settings: SequenceSettings, timestamps: pd.Series, clock: bool) -> int | None:
    """The time (seconds) from which on events stay out of every training; None without a window.

    Raises:
        InputError: a window of data without a clock.
    """
    if not settings.window_days:
        return None
    if not clock:
        raise InputError("window_days needs clock timestamps, which this data set has not; set window_days = 0")
    return int(timestamps.max()) + 1 - round(settings.window_days * DAY_S)


CHECKS = [
    artifact_check(
        "no_leak_between_splits",
        "user_sequences",
        "Each interaction belongs to one split, and within a user training precedes validation precedes test.",
        lambda _spec, artifact: check_splits(UserSequences.load(artifact.path)),
    )
]
