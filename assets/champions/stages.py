"""The three assets of a track, and its registration."""

import re
from typing import Any

import dagster as dg

from assets.champions.candidate import candidate_stage, champion_stage, not_worse_check
from assets.champions.drift import drift_stage
from assets.champions.track import CHAMPION_TRACKS, ChampionTrack


def champion_stages(
    track: ChampionTrack[Any, Any],
) -> tuple[tuple[dg.AssetsDefinition, dg.AssetsDefinition, dg.AssetsDefinition], dg.AssetChecksDefinition]:
    """Register the track. Returns its candidate, champion and drift report, and the check between the first two.

    Raises:
        ValueError: a track of this name is registered already, or the name cannot end that of a registered model.
    """
    if track.name in CHAMPION_TRACKS:
        raise ValueError(f"track {track.name} is registered twice")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", track.name):
        raise ValueError(f"track {track.name!r}: use lower-case letters, digits and _, beginning with a letter")
    stages = candidate_stage(track), champion_stage(track), drift_stage(track)
    CHAMPION_TRACKS[track.name] = track
    return stages, not_worse_check(track)
