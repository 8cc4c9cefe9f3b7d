"""Jobs: which assets run together."""

from typing import Any

import dagster as dg

TRACKS = {
    "raserec": dg.AssetSelection.groups("raw", "sequences", "recommender")
    | dg.AssetSelection.assets("ranking_metrics"),
    "rella": dg.AssetSelection.groups("raw", "text", "semantic", "index", "instruction", "language")
    | dg.AssetSelection.assets("ctr_metrics"),
}


INGEST = (
    "incoming_interactions",
    "raw_interactions",
    "interactions",
    "item_catalog",
    "user_profiles",
    "user_sequences",
)


def ingest_job(partitions: dg.StaticPartitionsDefinition) -> Any:
    """The job that takes in new files."""
    return dg.define_asset_job(
        "ingest",
        selection=dg.AssetSelection.assets(*INGEST),
        partitions_def=partitions,
        description="Takes in the files that arrived for one data set and makes its tables and sequences anew.",
    )


def track_jobs(partitions: dg.StaticPartitionsDefinition) -> list[Any]:
    """One job a track, and `everything`."""
    jobs = [
        dg.define_asset_job(
            track,
            selection=selection,
            partitions_def=partitions,
            description=f"The whole {track} track of one data set.",
        )
        for track, selection in TRACKS.items()
    ]
    everything = dg.define_asset_job(
        "everything",
        selection=dg.AssetSelection.all(),
        partitions_def=partitions,
        description="Every asset of one data set.",
    )
    return [*jobs, everything]
