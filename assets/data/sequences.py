"""Group `sequences`: every user's items in time order."""

from typing import Any

import numpy as np

from assets.data.clean import has_clock, load_counts, load_table
from assets.framework.checks import artifact_check
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, Request, stage
from rarec.data.sequences import SequenceSettings, UserSequences, build_sequences, check_splits


def _config(request: Request[SequenceSettings]) -> dict[str, Any]:
    """Without a window, the identity is the same as before windows existed."""
    window = {"window_days": request.settings.window_days} if request.settings.window_days else {}
    return {"split": request.spec.split, "short_users": request.spec.short_users, **window}


@stage(
    group="sequences",
    version="1",
    settings=SequenceSettings,
    shown=("window_days",),
    inputs=("interactions", "item_catalog", "user_profiles"),
    kinds={"numpy"},
    config=_config,
)
def user_sequences(job: Job[SequenceSettings]) -> Outcome:
    """Item sequences in time order with their leave-one-out split: last item test, last but one validation."""
    interactions, clock = job.inputs["interactions"], has_clock(job.inputs["interactions"])
    table = load_table(interactions, "interactions", ("user_index", "item_index", "timestamp"))
    users = load_table(job.inputs["user_profiles"], "users", ("user_id",))["user_id"]
    n_items = len(load_table(job.inputs["item_catalog"], "items", ("item_index",)))
    # New users start with one interaction, which must not stop everybody's training.
    arrived = load_counts(interactions).get("incoming_rows", 0)
    window, short_users = {}, "train-only" if arrived else job.spec.short_users
    until = job.settings.window_start(table["timestamp"].to_numpy(), clock)
    if until is not None:
        table = table[table["timestamp"] < until]
        window, short_users = {"until": until}, "train-only"  # all events of new users lie in the window
    sequences = build_sequences(
        table["user_index"], table["item_index"], table["timestamp"], len(users), n_items, short_users, users
    )
    sequences.save(job.folder)
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
        "time": load_counts(interactions)["time"],
        **({"tied_test_targets": sequences.tied_test_targets()} if clock and len(evaluated) else {}),
        **window,
    }
    return Outcome(values, metrics={name: value for name, value in values.items() if not isinstance(value, str)})


CHECKS = [
    artifact_check(
        "no_leak_between_splits",
        "user_sequences",
        "Each interaction belongs to one split, and within a user training precedes validation precedes test.",
        lambda _spec, artifact: check_splits(UserSequences.load(artifact.path)),
    )
]
