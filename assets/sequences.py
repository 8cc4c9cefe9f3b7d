"""Group `sequences`: every user's items in time order."""

from pathlib import Path

import dagster as dg
import numpy as np

from assets.checks import artifact_check
from assets.raw import load_counts, load_table
from assets.stage import OWNER, Outcome, StageConfig, materialise, refuse_bad_input, upstream
from rarec.data.sequences import UserSequences, build_sequences, check_splits
from resources.artifacts import ArtifactStore
from resources.folders import Folders
from resources.tracking import MlflowTracking, TrackedRun

CODE_VERSION = "1"


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
    config: StageConfig,
    store: ArtifactStore,
    tracking: MlflowTracking,
    folders: Folders,
) -> dg.MaterializeResult:
    """Item sequences in time order with their leave-one-out split: last item test, last but one validation."""
    spec = folders.spec(context.partition_key)
    inputs = upstream(context, store, "interactions", "item_catalog", "user_profiles")

    def build(folder: Path, run: TrackedRun) -> Outcome:
        table = load_table(inputs["interactions"], "interactions")
        users = load_table(inputs["user_profiles"], "users")["user_id"]
        n_items = len(load_table(inputs["item_catalog"], "items"))
        # Someone new has one interaction at first, which must not stop everybody's training.
        arrived = load_counts(inputs["interactions"]).get("incoming_rows", 0)
        short_users = "train-only" if arrived else spec.short_users
        sequences = build_sequences(
            table["user_index"], table["item_index"], table["timestamp"], len(users), n_items, short_users, users
        )
        sequences.save(folder)
        prefixes = sequences.prefixes("train")
        values = {
            "users": sequences.n_users,
            "items": n_items,
            "interactions": len(sequences.items),
            "training_prefixes": len(prefixes),
            "evaluated_users": len(sequences.evaluated_users()),
            "mean_length": float(sequences.lengths.mean()),
            "median_length": float(np.median(sequences.lengths)),
            "longest": int(sequences.lengths.max()),
            "time": load_counts(inputs["interactions"])["time"],
        }
        return Outcome(values, metrics={k: v for k, v in values.items() if not isinstance(v, str)})

    result, _ = materialise(
        context,
        store,
        tracking,
        code_version=CODE_VERSION,
        settings={"split": spec.split, "short_users": spec.short_users},
        inputs=inputs,
        force=config.force,
        build=build,
    )
    return result


CHECKS = [
    artifact_check(
        "no_leak_between_splits",
        "user_sequences",
        "Each interaction belongs to one split, and within a user training precedes validation precedes test.",
        lambda _spec, artifact: check_splits(UserSequences.load(artifact.path)),
    )
]
