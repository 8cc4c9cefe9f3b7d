"""Jobs: which assets run together."""

from typing import Any

import dagster as dg

TRACK_GROUPS = {"raserec": ("raw", "sequences", "recommender", "reports")}


def track_jobs(partitions: dg.StaticPartitionsDefinition) -> list[Any]:
    """One job a track, and `everything`."""
    jobs = [
        dg.define_asset_job(
            track,
            selection=dg.AssetSelection.groups(*groups),
            partitions_def=partitions,
            description=f"The whole {track} track of one data set.",
        )
        for track, groups in TRACK_GROUPS.items()
    ]
    everything = dg.define_asset_job(
        "everything",
        selection=dg.AssetSelection.all(),
        partitions_def=partitions,
        description="Every asset of one data set.",
    )
    return [*jobs, everything]
