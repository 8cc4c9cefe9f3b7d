"""What may be deleted: artifacts and working folders that are old and unreferenced."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from resources.artifacts.manifest import Manifest
from resources.artifacts.store import ArtifactStore
from resources.mlflow.registry import Version, rollback_chain

ArtifactKey = tuple[str, str, str]
"""Asset, partition, fingerprint."""


@dataclass(frozen=True)
class Verdict:
    """What happens to an artifact, a leftover or a working folder.

    Attributes:
        kept_for: why it stays; empty if it may be deleted.
    """

    what: str
    bytes: int
    kept_for: str


def judge_artifacts(
    manifests: Iterable[Manifest],
    in_use: Mapping[ArtifactKey, str],
    days: float,
    told_by: str,
    damaged: Mapping[str, Sequence[str]] | None = None,
) -> dict[ArtifactKey, Verdict]:
    """A verdict on every artifact.

    Args:
        manifests: those of all artifacts in the store.
        in_use: artifacts that are needed, and why. Everything they were made from, directly or not, is kept as well.
        days: younger artifacts stay, too.
        told_by: inputs whose name begins with this are only recorded; their artifacts need not be kept.
        damaged: partition -> its manifests that cannot be read. Nobody knows what these artifacts were made from, so
            everything in the partition stays.
    """
    damaged = damaged or {}
    every = {(one.asset, one.partition, one.fingerprint): one for one in manifests}
    by_version: dict[tuple[str, str], list[ArtifactKey]] = {}
    for identity, manifest in every.items():
        for version in (manifest.data_version, manifest.fingerprint):  # inputs are recorded by one or the other
            by_version.setdefault((manifest.partition, version), []).append(identity)
    kept = {identity: why for identity, why in in_use.items() if identity in every}
    pending = list(kept)
    while pending:
        manifest = every[pending.pop()]
        for name, version in manifest.inputs.items():
            if name.startswith(told_by):
                continue
            for one in by_version.get((manifest.partition, version), []):
                if one not in kept:
                    kept[one] = f"{manifest.asset} {manifest.fingerprint[:8]} was made from it"
                    pending.append(one)
    limit = datetime.now(UTC) - timedelta(days=days)
    verdicts = {}
    for identity, manifest in every.items():
        young = "" if datetime.fromisoformat(manifest.created) < limit else f"younger than {days:g} days"
        size = sum(record.bytes for record in manifest.files.values())
        needed = _may_be_needed(manifest.partition, damaged)
        verdicts[identity] = Verdict("/".join(identity), size, kept.get(identity) or young or needed)
    return verdicts


def wanted_versions(
    versions: Sequence[Version], champion: Version | None, rollbacks: int, days: float
) -> dict[int, str]:
    """Versions of a model whose artifacts stay, by number, each with its most important reason.

    Args:
        versions: oldest first.
        rollbacks: how many steps back from the champion must stay possible.
        days: younger versions stay, too.
    """
    wanted: dict[int, str] = {}
    if champion is not None:
        wanted[champion.number] = "is the champion"
        for version in rollback_chain(versions, champion)[:rollbacks]:
            wanted[version.number] = "can be restored by `rollback`"
    for version in versions[-1:]:
        wanted.setdefault(version.number, "is the newest")
    for version in versions:
        if version.registered > time.time() - days * 86_400:
            wanted.setdefault(version.number, f"is younger than {days:g} days")
    return wanted


def judge_leftovers(
    leftovers: Mapping[str, tuple[int, float | None]], days: float, damaged: Mapping[str, Sequence[str]]
) -> dict[str, Verdict]:
    """A verdict on the leftovers that `ArtifactStore.survey` found. A young one may belong to an upload in progress."""
    verdicts = {}
    for folder, (size, written) in leftovers.items():
        if written is None:
            why = "its age is unknown"
        else:
            why = f"younger than {days:g} days" if written > time.time() - days * 86_400 else ""
        verdicts[folder] = Verdict(folder, size, why or _may_be_needed(folder.split("/")[1], damaged))
    return verdicts


def _may_be_needed(partition: str, damaged: Mapping[str, Sequence[str]]) -> str:
    paths = damaged.get(partition)
    return f"may be needed: {paths[0]} is damaged" if paths else ""


def judge_work(work: Path, days: float, is_busy: Callable[[Path], bool]) -> dict[Path, Verdict]:
    """A verdict on every working folder, work/<asset>/<fingerprint>."""
    verdicts = {}
    for folder in sorted(work.glob("*/*")):
        if not folder.is_dir():
            continue
        files = [path for path in folder.rglob("*") if path.is_file()]
        newest = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        age_days = (time.time() - newest) / 86_400
        why = "a run is using it" if is_busy(folder) else f"younger than {days:g} days" if age_days < days else ""
        verdicts[folder] = Verdict(
            f"work/{folder.parent.name}/{folder.name}", sum(p.stat().st_size for p in files), why
        )
    return verdicts


def remove(
    store: ArtifactStore,
    artifacts: dict[ArtifactKey, Verdict],
    leftovers: dict[str, Verdict],
    folders: dict[Path, Verdict],
) -> int:
    """Delete everything that no verdict keeps; returns the bytes freed."""
    freed = 0
    for leftover, verdict in leftovers.items():
        if not verdict.kept_for:
            store.remove_leftover(leftover)
            freed += verdict.bytes
    for identity, verdict in artifacts.items():
        if not verdict.kept_for:
            store.remove(*identity)
            freed += verdict.bytes
    for folder, verdict in folders.items():
        if not verdict.kept_for:
            shutil.rmtree(folder)
            freed += verdict.bytes
    return freed
