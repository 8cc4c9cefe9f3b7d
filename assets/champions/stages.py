"""The three assets of a track, and its registration."""

from typing import Any

import dagster as dg

from assets.champions.candidate import candidate_stage, champion_stage, not_worse_check
from assets.champions.drift import drift_stage
from assets.champions.track import TRACKS, ChampionTrack


def champion_stages(
    track: ChampionTrack[Any, Any],
) -> tuple[tuple[dg.AssetsDefinition, dg.AssetsDefinition, dg.AssetsDefinition], dg.AssetChecksDefinition]:
    """Register the track. Returns its candidate, champion and drift report, and the check between the first two.

    Raises:
        ValueError: a track of this name is registered already.
    """
    if track.name in TRACKS:
        raise ValueError(f"track {track.name} is registered twice")
    TRACKS[track.name] = track
    return (candidate_stage(track), champion_stage(track), drift_stage(track)), not_worse_check(track)
